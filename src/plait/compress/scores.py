"""How much every part of a parent matters, measured once; any number of cuts follow from it.

`Scores` is what `importance` and `depth` measure, as a folder: `scores.safetensors`, `scores.json`
and plots. Besides importance it holds, for every norm, the second moments of what the norm sees,
from which the correction of that norm follows for whatever channels are kept:

    a norm divides by r = sqrt(mean x^2 + eps) over its channels, the pruned one by the same over
    kept channels, r'. With m_c = E[x_c^2 / r^2],  E[r'^2 / r^2] = 1 - mean_all m + mean_kept m,
    because eps / r^2 = 1 - mean_all(x^2 / r^2). The kept weights are multiplied by its root.

So kept channels leave the norm with the mean square they had before. If the others are exactly
zero the ratio is the same for every token and the correction is exact, sqrt(n_old / n_new) without
eps. The root mean square of r' / r stands for its mean: it needs no second pass for each cut.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from plait.compress.cut import Cut, Indices, Shape, layers_of
from plait.core.artifact import write_atomic, write_json
from plait.core.errors import ConfigError, DataError
from plait.model.spec import ModelSpec

TENSORS_FILE, FACTS_FILE = "scores.safetensors", "scores.json"
FINAL_NORM = "backbone.norm_f.weight"


class Removal(NamedTuple):
    """One step of the iterative search for layers that are not needed."""

    layer: int
    """The layer removed, an index of the parent."""
    harms: dict[int, float]
    """What removing each layer that could go would have cost; the removed one has the least."""


class Scores(NamedTuple):
    """Importance of the parts of a parent, float32; greater is more important."""

    spec: ModelSpec
    """The parent's."""
    embedding: dict[str, Tensor]
    """(D,) for every norm that reads the residual stream, by the name of its weight."""
    feed_forward: dict[int, Tensor]
    """(F,) for every feed-forward layer."""
    mamba: dict[int, Tensor]
    """(H, P) for every Mamba layer."""
    attention: dict[int, Tensor]
    """(Hq,) for every attention layer; reported, nothing is cut by it."""
    moments: dict[str, Tensor]
    """(D,) or (H * P,) for every norm by the name of its weight: E[x_c^2 / r^2], float64."""
    removals: tuple[Removal, ...] = ()
    """Layers in the order they are to be removed."""
    facts: dict[str, Any] = {}  # noqa: RUF012 - never written to
    """How it was measured: tokens, metric, forward passes of single layers."""

    def layers(self, num_layers: int) -> Indices:
        """Return the layers to keep at a depth.

        Raises: ConfigError if the search for layers did not go that far.
        """
        num_removed = self.spec.num_layers - num_layers
        if not 0 <= num_removed <= len(self.removals):
            raise ConfigError(
                f"a depth of {num_layers} layers is asked for, the scores can give "
                f"{self.spec.num_layers - len(self.removals)} to {self.spec.num_layers}; "
                "score the parent with more removals"
            )
        removed = {removal.layer for removal in self.removals[:num_removed]}
        return tuple(layer for layer in range(self.spec.num_layers) if layer not in removed)

    def check_shape(self, parent: ModelSpec) -> None:
        """Check that these scores can be those of a model, by all sizes of it.

        Raises: ConfigError naming the first size that differs.
        """
        for name in _SIZES:
            measured, found = getattr(self.spec, name), getattr(parent, name)
            if found != measured:
                raise ConfigError(
                    "these scores were measured on a parent of another shape: its "
                    f"{name} is {measured}, this model's {found}"
                )

    def cut(self, shape: Shape, parent: ModelSpec) -> Cut:
        """Return the cut to this shape that keeps what matters most.

        Raises: ConfigError if the shape does not fit or the scores are those of another parent.
        """
        self.check_shape(parent)
        shape.spec(parent)
        kept = {kind: [i for i in layers_of(parent, kind) if i in shape.layers] for kind in "M-"}
        channels = {i: top(self.mamba[i].norm(dim=0), shape.mamba_head_dim) for i in kept["M"]}
        return Cut(
            layers=shape.layers,
            embedding=top(self._embedding_of(shape.layers), shape.hidden_size),
            feed_forward={i: top(self.feed_forward[i], shape.intermediate_size) for i in kept["-"]},
            mamba_heads={
                i: top_heads(
                    self.mamba[i][:, list(channels[i])].norm(dim=1),
                    shape.mamba_num_heads,
                    parent.num_groups,
                )
                for i in kept["M"]
            },
            mamba_channels=channels,
        )

    def corrections(self, cut: Cut) -> dict[str, Tensor]:
        """Return for every norm of the child, by its name in the parent, what scales its weights.

        One factor for a norm of the residual stream, one for each group of a gated norm.
        """
        embedding = torch.tensor(cut.embedding)
        found = {
            name: _correction(self.moments[name][None], embedding)
            for name in [*(norm_name(layer) for layer in cut.layers), FINAL_NORM]
        }
        for layer, heads in cut.mamba_heads.items():
            name = gated_norm_name(layer)
            inner = inner_channels(heads, cut.mamba_channels[layer], self.spec.mamba_head_dim)
            moments = self.moments[name].view(self.spec.num_groups, -1)
            # Every group keeps as many channels; count them from where the group begins.
            kept = inner.view(self.spec.num_groups, -1) % moments.shape[1]
            found[name] = torch.cat(
                [_correction(m[None], k) for m, k in zip(moments, kept, strict=True)]
            )
        return found

    def shuffled(self, seed: int) -> "Scores":
        """Return scores that say nothing: each tensor of importance in a random order.

        What a cut by importance is to be compared with; corrections of norms stay what they are.
        """
        generator = torch.Generator().manual_seed(seed)

        def shuffle(table: dict[Any, Tensor]) -> dict[Any, Tensor]:
            return {
                key: t.flatten()[torch.randperm(t.numel(), generator=generator)].view_as(t)
                for key, t in table.items()
            }

        return self._replace(
            embedding=shuffle(self.embedding),
            feed_forward=shuffle(self.feed_forward),
            mamba=shuffle(self.mamba),
        )

    def write(self, folder: Path) -> None:
        """Write tensors, then facts: a folder without the latter is unfinished."""
        tensors = {
            f"{field}.{key}": tensor.contiguous()
            for field in _TABLES
            for key, tensor in getattr(self, field).items()
        }
        write_atomic(folder / TENSORS_FILE, save(tensors))
        facts = {
            "spec": self.spec.model_dump(mode="json"),
            "removals": [removal._asdict() for removal in self.removals],
            "facts": self.facts,
        }
        write_json(folder / FACTS_FILE, facts)

    @classmethod
    def read(cls, folder: Path) -> "Scores":
        """Read a folder of scores.

        Raises: DataError if it is missing, unfinished or damaged.
        """
        try:
            facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
            tensors = load_file(folder / TENSORS_FILE)
            removals = tuple(
                Removal(step["layer"], {int(key): harm for key, harm in step["harms"].items()})
                for step in facts["removals"]
            )
            spec = ModelSpec.parse(_from_json(facts["spec"]), str(folder / FACTS_FILE))
            scores = cls.from_tensors(spec, tensors)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(
                f"{folder}: no finished scores here ({error!r}); score the parent again"
            ) from None
        return scores._replace(removals=removals, facts=facts["facts"])

    @classmethod
    def from_tensors(cls, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> "Scores":
        """Return scores of widths from tensors called <table>.<layer or name of a norm>."""
        tables: dict[str, dict[Any, Tensor]] = {table: {} for table in _TABLES}
        for name, tensor in tensors.items():
            table, _, key = name.partition(".")
            tables[table][int(key) if table in _BY_LAYER else key] = tensor
        return cls(
            spec,
            embedding=tables["embedding"],
            feed_forward=tables["feed_forward"],
            mamba=tables["mamba"],
            attention=tables["attention"],
            moments=tables["moments"],
        )

    def _embedding_of(self, layers: Indices) -> Tensor:
        """Sum over the norms that the child still has."""
        names = [*(norm_name(layer) for layer in layers), FINAL_NORM]
        return torch.stack([self.embedding[name] for name in names]).sum(0)


_BY_LAYER = ("feed_forward", "mamba", "attention")
_TABLES = ("embedding", *_BY_LAYER, "moments")
# Fields of a spec that shape its tensors.
_SIZES = (
    "pattern",
    "hidden_size",
    "vocab_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "attention_head_dim",
    "mamba_num_heads",
    "mamba_head_dim",
    "num_groups",
    "state_size",
    "conv_kernel",
    "use_conv_bias",
    "use_bias",
    "mlp_bias",
)


def norm_name(layer: int) -> str:
    """Return the name of the weight of a layer's norm."""
    return f"backbone.layers.{layer}.norm.weight"


def gated_norm_name(layer: int) -> str:
    """Return the name of the weight of the gated norm inside a Mamba layer."""
    return f"backbone.layers.{layer}.mixer.norm.weight"


def top(scores: Tensor, number: int) -> Indices:
    """Return the indices of the greatest scores, ascending; of equals the first are kept."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return tuple(order[:number].sort().values.tolist())


def top_heads(scores: Tensor, number: int, num_groups: int) -> Indices:
    """Return the best heads, the same number of each group, ascending."""
    per_group = len(scores) // num_groups
    return tuple(
        group * per_group + head
        for group, part in enumerate(scores.view(num_groups, per_group))
        for head in top(part, number // num_groups)
    )


def inner_channels(heads: Indices, channels: Indices, head_dim: int) -> Tensor:
    """Return which of the H * P channels inside a Mamba layer are kept, ascending."""
    return (torch.tensor(heads)[:, None] * head_dim + torch.tensor(channels)).flatten()


def _correction(moments: Tensor, kept: Tensor) -> Tensor:
    """Return (rows,) factors for moments (rows, n), of which `kept` columns stay."""
    moments = moments.double()
    return (1.0 - moments.mean(1) + moments[:, kept].mean(1)).sqrt()


def _from_json(table: dict[str, Any]) -> dict[str, Any]:
    """Undo what JSON cannot say: pydantic writes infinity as null."""
    low, high = table["time_step_limit"]
    return table | {"time_step_limit": (low, float("inf") if high is None else high)}
