"""Every child of a parent that fits a memory budget.

Axes: which layers are kept, width of the residual stream, of the feed-forward layers, number and
width of Mamba heads. A grid over the widths is crossed with a list of depths; whatever fits is a
candidate. No weights are needed for that: without scores a depth is a number of layers of each
kind, and evenly spaced layers stand in for those that scores would choose.

A candidate that could grow by one step along an axis and still fit is not worth measuring: the
larger child has all it has. What remains, the `edge`, is what the search ranks.

Source: arXiv 2508.14444 section 4.2: ranges, and the choice of what fits by memory.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator

from plait.compress.cut import Indices, Shape, layers_of
from plait.compress.memory import Workload, memory
from plait.core.config import Settings
from plait.core.errors import ConfigError
from plait.core.sizes import format_bytes
from plait.model.count import ServingBytes
from plait.model.spec import ModelSpec

PositiveInt = Annotated[int, Field(gt=0)]
Axis = tuple[PositiveInt, PositiveInt, PositiveInt]
"""Least, greatest, step. Values are counted down from the greatest."""


class Ranges(Settings):
    """What a child may look like. An axis left out takes the report's share of the parent."""

    num_layers: Axis | None = None
    """Layers kept. Default: 6 to 10 of 62 less, the same share of another parent."""
    keep_attention: PositiveInt | None = None
    """Attention layers that stay at least. Default: two thirds of them, as 4 of 6."""
    hidden_size: Axis | None = None
    """Default: 7/8 of the parent's to all of it by sixteenths, as 4480 to 5120 by 320."""
    intermediate_size: Axis | None = None
    """Default: 21/32 to all by sixty-fourths, as 13440 to 20480 by 320."""
    mamba_num_heads: Axis | None = None
    """Default: 7/8 to all by the number of groups, as 112 to 128 by 8."""
    mamba_head_dim: Axis | None = None
    """Default: the parent's, as in the report. Multiples of 16 suit matrix units."""
    align: PositiveInt = 1
    """What widths that become rows or columns of linears must be multiples of; 128 lets every
    linear run in FP8 by blocks without padding."""

    @field_validator(
        "num_layers", "hidden_size", "intermediate_size", "mamba_num_heads", "mamba_head_dim"
    )
    @classmethod
    def _rises(cls, axis: Axis | None) -> Axis | None:
        if axis is not None and axis[0] > axis[1]:
            raise ValueError(f"{axis[0]} to {axis[1]}: write least, greatest, step")
        return axis


class Grid(NamedTuple):
    """The values of every axis for one parent, ascending."""

    num_layers: tuple[int, ...]
    keep_attention: int
    hidden_size: tuple[int, ...]
    intermediate_size: tuple[int, ...]
    mamba_num_heads: tuple[int, ...]
    mamba_head_dim: tuple[int, ...]

    @classmethod
    def of(cls, ranges: Ranges, parent: ModelSpec) -> "Grid":
        """Fill in the defaults for a parent.

        Raises: ConfigError for a range outside the parent or heads its groups do not divide.
        """
        layers, width, hidden = parent.num_layers, parent.intermediate_size, parent.hidden_size
        heads, head_dim, groups = parent.mamba_num_heads, parent.mamba_head_dim, parent.num_groups
        defaults: dict[str, Axis] = {
            "num_layers": (layers - round(layers * 10 / 62), layers - round(layers * 6 / 62), 1),
            "hidden_size": (hidden * 7 // 8, hidden, max(1, hidden // 16)),
            "intermediate_size": (width * 21 // 32, width, max(1, width // 64)),
            "mamba_num_heads": (heads * 7 // 8, heads, groups),
            "mamba_head_dim": (head_dim, head_dim, 1),
        }
        values = {
            name: _values(name, getattr(ranges, name) or default, getattr(parent, name))
            for name, default in defaults.items()
        }
        if wrong := [number for number in values["mamba_num_heads"] if number % groups]:
            raise ConfigError(
                f"mamba_num_heads: {wrong[0]} is not a multiple of the parent's {groups} groups; "
                f"use a step and bounds that are multiples of {groups}"
            )
        keep = ranges.keep_attention or max(1, round(parent.num_attention_layers * 2 / 3))
        if keep > parent.num_attention_layers > 0:
            raise ConfigError(
                f"keep_attention = {keep}, the parent has {parent.num_attention_layers} attention "
                "layers; ask for that many or fewer"
            )
        return cls(keep_attention=keep, **values)

    def widths(self) -> list[dict[str, int]]:
        """Return every combination of widths."""
        names = ("hidden_size", "intermediate_size", "mamba_num_heads", "mamba_head_dim")
        axes = (getattr(self, name) for name in names)
        return [dict(zip(names, values, strict=True)) for values in product(*axes)]


class Candidate(NamedTuple):
    """A child that fits."""

    shape: Shape
    spec: ModelSpec
    memory: ServingBytes

    @property
    def kinds(self) -> tuple[int, int, int]:
        """Mamba, attention and feed-forward layers."""
        return _kinds(self.spec.pattern)

    @property
    def name(self) -> str:
        """The shape in a word, as files and tables call it."""
        shape, (mamba, attention, feed_forward) = self.shape, self.kinds
        return (
            f"{mamba}M{attention}A{feed_forward}F-{shape.hidden_size}-{shape.intermediate_size}"
            f"-{shape.mamba_num_heads}x{shape.mamba_head_dim}"
        )

    def record(self) -> dict[str, Any]:
        """Return the candidate as JSON values."""
        return {
            "name": self.name,
            **self.shape.model_dump(mode="json"),
            "pattern": self.spec.pattern,
            "num_parameters": self.spec.num_parameters,
            "memory": {**self.memory._asdict(), "total": self.memory.total},
        }


def stand_in_depths(parent: ModelSpec, grid: Grid, max_share: float = 0.2) -> list[Indices]:
    """Return one choice of layers for every number of layers of each kind that may be kept.

    No more than `max_share` of the Mamba and of the feed-forward layers goes, but one may.
    """
    found = []
    for num_layers in grid.num_layers:
        for mamba, attention, feed_forward in _splits(parent, num_layers, grid, max_share):
            kept = [
                *_spread(layers_of(parent, "M"), mamba),
                *_spread(layers_of(parent, "*"), attention),
                *_spread(layers_of(parent, "-"), feed_forward),
            ]
            found.append(tuple(sorted(kept)))
    return found


def candidates(
    parent: ModelSpec,
    depths: Sequence[Indices],
    ranges: Ranges,
    workload: Workload,
    budget_bytes: int,
) -> list[Candidate]:
    """Return every child of these depths that fits the budget, the largest first.

    Raises: ConfigError if none fits, saying what the smallest would need.
    """
    grid = Grid.of(ranges, parent)
    found, smallest = [], None
    patterns = ["".join(parent.pattern[layer] for layer in layers) for layers in depths]
    for (layers, pattern), widths in product(zip(depths, patterns, strict=True), grid.widths()):
        # Thousands of them, all inside the parent's grid: built without checking each.
        shape = Shape.model_construct(None, layers=layers, **widths)
        spec = parent.model_copy(update={"pattern": pattern, **widths})
        if not _aligned(spec, ranges.align):
            continue
        terms = memory(spec, workload)
        if smallest is None or terms.total < smallest.memory.total:
            smallest = Candidate(shape, spec, terms)
        if terms.total <= budget_bytes:
            found.append(Candidate(shape, spec, terms))
    if not depths:
        raise ConfigError(
            f"no child has {grid.num_layers[0]} to {grid.num_layers[-1]} layers and keeps "
            f"{grid.keep_attention} of attention; allow more layers or less attention"
        )
    if smallest is None:
        raise ConfigError(
            f"no child has widths that are multiples of align = {ranges.align}; choose ranges "
            "that contain such or a smaller align"
        )
    if not found:
        raise ConfigError(
            f"no allowed child fits {format_bytes(budget_bytes)}: the smallest, {smallest.name}, "
            f"takes {smallest.memory.describe()}; raise the budget, shorten the context, widen the "
            "ranges, or set workload.fixed, which is a guess"
        )
    return sorted(found, key=lambda candidate: -candidate.memory.total)


def edge(found: Sequence[Candidate], parent: ModelSpec, ranges: Ranges) -> list[Candidate]:
    """Return the candidates that cannot grow by one step along any axis and still fit."""
    grid = Grid.of(ranges, parent)
    present = {_place(candidate) for candidate in found}
    depths = {candidate.kinds for candidate in found}
    return [
        candidate
        for candidate in found
        if present.isdisjoint(_larger(_place(candidate), depths, grid))
    ]


Place = tuple[tuple[int, int, int], tuple[int, ...]]
"""Layers of each kind; widths."""


def _place(candidate: Candidate) -> Place:
    shape = candidate.shape
    widths = (
        shape.hidden_size,
        shape.intermediate_size,
        shape.mamba_num_heads,
        shape.mamba_head_dim,
    )
    return candidate.kinds, widths


def _larger(place: Place, depths: set[tuple[int, int, int]], grid: Grid) -> list[Place]:
    """Return the neighbours of a place that have one step more on one axis."""
    kinds, widths = place
    axes = (grid.hidden_size, grid.intermediate_size, grid.mamba_num_heads, grid.mamba_head_dim)
    found = [
        (depth, widths)
        for depth in depths
        if depth != kinds and all(more >= less for more, less in zip(depth, kinds, strict=True))
    ]
    for index, axis in enumerate(axes):
        following = [value for value in axis if value > widths[index]]
        if following:
            found.append((kinds, (*widths[:index], following[0], *widths[index + 1 :])))
    return found


def _values(name: str, axis: Axis, size: int) -> tuple[int, ...]:
    least, greatest, step = axis
    if greatest > size:
        raise ConfigError(
            f"{name}: a child of up to {greatest} is asked for, the parent has {size}"
        )
    return tuple(reversed(range(greatest, least - 1, -step)))


def _splits(
    parent: ModelSpec, num_layers: int, grid: Grid, max_share: float
) -> list[tuple[int, int, int]]:
    """Return the numbers of layers of each kind that add up to a depth."""
    mamba, attention, feed_forward = _kinds(parent.pattern)
    fewest_m, fewest_f = (n - max(1, int(n * max_share)) for n in (mamba, feed_forward))
    found = []
    for a in range(min(grid.keep_attention, attention), attention + 1):
        for m in range(max(0, fewest_m), mamba + 1):
            if max(0, fewest_f) <= num_layers - a - m <= feed_forward:
                found.append((m, a, num_layers - a - m))
    return found


def _spread(layers: Sequence[int], number: int) -> list[int]:
    """Return so many of the layers, evenly spaced."""
    return [layers[index * len(layers) // number] for index in range(number)]


def _kinds(pattern: str) -> tuple[int, int, int]:
    counts = Counter(pattern)
    return counts["M"], counts["*"], counts["-"]


def _aligned(spec: ModelSpec, multiple: int) -> bool:
    widths = (spec.hidden_size, spec.intermediate_size, spec.d_inner, spec.in_proj_dim)
    return not any(width % multiple for width in widths)
