"""What is kept of a parent: a `Shape` says how much, a `Cut` says which.

A cut is a list of kept indices, nothing of it depends on weights. Written as `cut.json` it can be
applied to another checkpoint of the same shape: what was found on a base model also cuts its
aligned one. Indices are those of the parent and ascend, so that what is kept stands in its old
order: heads stay in their groups, groups stay in their places.

Widths are the same in every layer of the child, as engines expect it, but which channels they are
is each layer's own affair. Attention heads, B/C groups, the state and the vocabulary are not cut.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from plait.core.artifact import write_atomic
from plait.core.config import Settings
from plait.core.errors import ConfigError
from plait.model.spec import ModelSpec

CUT_FILE = "cut.json"

PositiveInt = Annotated[int, Field(gt=0)]
Indices = tuple[int, ...]


class Shape(Settings):
    """How much of a parent is kept."""

    layers: Indices
    """Kept layers, indices into the parent's pattern, ascending."""
    hidden_size: PositiveInt
    """Embedding channels, everywhere on the residual stream."""
    intermediate_size: PositiveInt
    """Channels of every feed-forward layer."""
    mamba_num_heads: PositiveInt
    """Heads of every Mamba layer; the parent's groups divide it."""
    mamba_head_dim: PositiveInt
    """Channels of every Mamba head."""

    @classmethod
    def of(cls, spec: ModelSpec) -> "Shape":
        """Return the shape that keeps everything."""
        return cls(layers=tuple(range(spec.num_layers)), **_widths(spec))

    def spec(self, parent: ModelSpec) -> ModelSpec:
        """Return the child's spec.

        Raises: ConfigError if the parent is smaller than this, or its groups do not divide the
        heads that are to be kept.
        """
        _check_indices("layers", self.layers, parent.num_layers)
        for name, size in _widths(parent).items():
            if (wanted := getattr(self, name)) > size:
                raise ConfigError(f"the child asks for {name} = {wanted}, the parent has {size}")
        if self.mamba_num_heads % parent.num_groups:
            raise ConfigError(
                f"mamba_num_heads = {self.mamba_num_heads} is not a multiple of the parent's "
                f"{parent.num_groups} groups; every group keeps the same number of heads"
            )
        pattern = "".join(parent.pattern[layer] for layer in self.layers)
        return parent.model_copy(
            update={"pattern": pattern, **{name: getattr(self, name) for name in _widths(parent)}}
        )


class Cut(Settings):
    """Which parts of a parent are kept, as ascending indices into it."""

    layers: Indices
    """Kept layers."""
    embedding: Indices
    """Kept channels of the residual stream."""
    feed_forward: dict[int, Indices]
    """Kept channels of every kept feed-forward layer, by the layer's index in the parent."""
    mamba_heads: dict[int, Indices]
    """Kept heads of every kept Mamba layer; the same number in each group."""
    mamba_channels: dict[int, Indices]
    """Kept channels of every head of that layer, the same for all its heads."""

    @classmethod
    def nothing(cls, parent: ModelSpec) -> "Cut":
        """Return the cut that keeps everything."""
        kept = {kind: layers_of(parent, kind) for kind in "M-"}
        return cls(
            layers=tuple(range(parent.num_layers)),
            embedding=tuple(range(parent.hidden_size)),
            feed_forward=dict.fromkeys(kept["-"], tuple(range(parent.intermediate_size))),
            mamba_heads=dict.fromkeys(kept["M"], tuple(range(parent.mamba_num_heads))),
            mamba_channels=dict.fromkeys(kept["M"], tuple(range(parent.mamba_head_dim))),
        )

    def shape(self, parent: ModelSpec) -> Shape:
        """Return how much this keeps; a width that no kept layer has is the parent's.

        Raises: ConfigError if the cut does not fit the parent.
        """
        self._check(parent)
        return Shape(
            layers=self.layers,
            hidden_size=len(self.embedding),
            intermediate_size=_count(self.feed_forward, parent.intermediate_size),
            mamba_num_heads=_count(self.mamba_heads, parent.mamba_num_heads),
            mamba_head_dim=_count(self.mamba_channels, parent.mamba_head_dim),
        )

    def spec(self, parent: ModelSpec) -> ModelSpec:
        """Return the child's spec.

        Raises: ConfigError if the cut does not fit the parent.
        """
        return self.shape(parent).spec(parent)

    def write(self, path: Path) -> None:
        """Write the cut as JSON, whole or not at all."""
        write_atomic(path, self.model_dump_json() + "\n")

    @classmethod
    def read(cls, path: Path) -> "Cut":
        """Read a cut.

        Raises: ConfigError if the file is missing or not a cut.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; pruning writes {CUT_FILE}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "(file)"
            raise ConfigError(f"{path}: not a cut: {where}: {first['msg']}") from None

    def _check(self, parent: ModelSpec) -> None:
        _check_indices("layers", self.layers, parent.num_layers)
        _check_indices("embedding", self.embedding, parent.hidden_size)
        for name, kind, size in (
            ("feed_forward", "-", parent.intermediate_size),
            ("mamba_heads", "M", parent.mamba_num_heads),
            ("mamba_channels", "M", parent.mamba_head_dim),
        ):
            table: dict[int, Indices] = getattr(self, name)
            expected = sorted(set(self.layers).intersection(layers_of(parent, kind)))
            if sorted(table) != expected:
                raise ConfigError(
                    f"{name} is given for layers {sorted(table)}, but the kept layers of kind "
                    f"{kind!r} are {expected}: this cut was made for another layer pattern"
                )
            for layer, indices in table.items():
                _check_indices(f"{name} of layer {layer}", indices, size)
            if len({len(indices) for indices in table.values()}) > 1:
                counts = {layer: len(indices) for layer, indices in table.items()}
                raise ConfigError(f"{name} keeps different numbers in different layers: {counts}")
        for layer, heads in self.mamba_heads.items():
            _check_groups(layer, heads, parent)


def layers_of(spec: ModelSpec, kind: str) -> list[int]:
    """Return the indices of the layers of a kind, `M`, `*` or `-`."""
    return [index for index, letter in enumerate(spec.pattern) if letter == kind]


def _widths(spec: ModelSpec) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "mamba_num_heads", "mamba_head_dim")
    return {name: getattr(spec, name) for name in names}


def _count(table: Mapping[int, Indices], otherwise: int) -> int:
    return len(next(iter(table.values()))) if table else otherwise


def _check_indices(name: str, indices: Sequence[int], size: int) -> None:
    if not indices:
        raise ConfigError(f"{name} keeps nothing; keep at least one of {size}")
    if any(following <= index for index, following in pairwise(indices)):
        raise ConfigError(f"{name} must be ascending indices without repetition")
    if indices[0] < 0 or indices[-1] >= size:
        raise ConfigError(
            f"{name} keeps {indices[0]} to {indices[-1]}, the parent has 0 to {size - 1}"
        )


def _check_groups(layer: int, heads: Indices, parent: ModelSpec) -> None:
    heads_per_group = parent.mamba_num_heads // parent.num_groups
    counts = [0] * parent.num_groups
    for head in heads:
        counts[head // heads_per_group] += 1
    if len(set(counts)) > 1:
        raise ConfigError(
            f"mamba_heads of layer {layer} keeps {counts} heads in groups 0 to "
            f"{parent.num_groups - 1}; every group must keep the same number, because the heads "
            "of a group share its B and C"
        )
