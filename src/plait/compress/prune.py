"""Slicing: which rows and columns of every tensor a cut keeps, in memory or from disk to disk.

    in_proj rows are [z: HP | x: HP | B: GN | C: GN | dt: H], the convolution runs over [x | B | C];
    channel d of head i is i P + d, head i is in group i // (H / G)

    tensor                    rows                                            columns
    in_proj                   inner, HP + inner, all B and C, then heads      embedding
    conv1d                    inner, all B and C                              -
    A_log, D, dt_bias         heads                                           -
    gated norm                inner                                           -
    out_proj                  embedding                                       inner
    up_proj / down_proj       feed-forward / embedding                        embedding / f.-f.
    q, k, v_proj / o_proj     all / embedding                                 embedding / all
    embeddings, lm_head       all                                             embedding
    norms                     embedding                                       -

A bias is cut as its rows are. A norm over fewer channels divides by something else than before;
`corrections` (from `Scores.corrections`) puts that right in its weights: see `scores`.

Source: arXiv 2504.11409 for the groups; the corrections are ours.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from plait.compress.cut import CUT_FILE, Cut
from plait.compress.scores import inner_channels
from plait.core.artifact import atomic_directory
from plait.core.errors import CheckpointError, ConfigError
from plait.model.hf import load, write_files
from plait.model.hf_stream import ModelDirectory
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

MAX_SHARD_BYTES = 1_000_000_000
# The child of a parent up to this size is compared with one cut in memory, which takes both there.
MAX_COMPARED_PARAMETERS = 200_000_000


class Slice(NamedTuple):
    """Where a tensor of the child comes from."""

    source: str
    """Name of the parent's tensor."""
    rows: Tensor | None
    """Kept indices of the first axis; None keeps all."""
    columns: Tensor | None = None
    """Kept indices of the second axis."""

    def of(self, tensor: Tensor, corrections: Mapping[str, Tensor]) -> Tensor:
        """Cut a tensor of the parent; a norm's weights are corrected if a factor is known."""
        for axis, kept in enumerate((self.rows, self.columns)):
            if kept is not None:
                tensor = tensor.index_select(axis, kept.to(tensor.device))
        if self.source in corrections:
            factors = corrections[self.source].to(tensor.device, torch.float64)
            corrected = tensor.double().view(len(factors), -1) * factors[:, None]
            tensor = corrected.flatten().to(tensor.dtype)
        return tensor.contiguous()


def slices(parent: ModelSpec, cut: Cut) -> dict[str, Slice]:
    """Return for every tensor of the child, in the model's order, what it is of the parent's.

    Raises: ConfigError if the cut does not fit the parent.
    """
    child = HybridLM(cut.spec(parent), device="meta")
    tables = [_layer_table(parent, cut, layer) for layer in cut.layers]
    embedding = torch.tensor(cut.embedding)
    found: dict[str, Slice] = {}
    for name in child.state_dict():
        if name.startswith("backbone.layers."):
            number, _, inside = name.removeprefix("backbone.layers.").partition(".")
            source = f"backbone.layers.{cut.layers[int(number)]}.{inside}"
            found[name] = Slice(source, *tables[int(number)][inside])
        elif name == "backbone.norm_f.weight":
            found[name] = Slice(name, embedding)
        else:
            found[name] = Slice(name, None, embedding)
    return found


def prune(model: HybridLM, cut: Cut, corrections: Mapping[str, Tensor]) -> HybridLM:
    """Return a child that shares no memory with the parent; each tensor keeps its dtype.

    corrections: as `Scores.corrections(cut)` gives them; an empty mapping leaves norms alone.
    Raises: ConfigError if the cut does not fit the model.
    """
    weights = model.state_dict()
    child = HybridLM(cut.spec(model.spec), device="meta")
    tensors = {
        name: part.of(weights[part.source], corrections).clone()
        for name, part in slices(model.spec, cut).items()
    }
    child.load_state_dict(tensors, assign=True)
    child.compute_dtype = model.compute_dtype
    return child


def prune_directory(
    parent: str | Path,
    cut: Cut,
    out: Path,
    corrections: Mapping[str, Tensor],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ModelSpec:
    """Write the child of a model directory, one shard in memory at a time; return its spec.

    Tokenizer files come along and `cut.json` says what was kept. The child is checked before it
    takes its name: shapes and counts always, and if the parent has at most MAX_COMPARED_PARAMETERS
    its logits against a child cut in memory. The parent is only read.

    Raises: ConfigError if the cut does not fit or `out` is not empty; CheckpointError if the
    parent is incomplete or the written child is not what it should be.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is not empty; give a new directory for the child")
    source = ModelDirectory(parent)
    child = cut.spec(source.spec)
    parts = slices(source.spec, cut)

    def read(name: str) -> Tensor:
        return parts[name].of(source.tensor(parts[name].source), corrections)

    with atomic_directory(out) as partial:
        write_files(
            partial,
            child,
            _num_bytes(source, child, parts),
            read,
            source.dtype,
            tokenizer_from=source.path,
            max_shard_bytes=max_shard_bytes,
        )
        cut.write(partial / CUT_FILE)
        check_written(partial, child)
        if source.spec.num_parameters <= MAX_COMPARED_PARAMETERS:
            check_logits(partial, prune(load(source.path), cut, corrections))
    return child


def check_written(directory: Path, spec: ModelSpec) -> None:
    """Check spec, every shape and the total count of a written model by its headers.

    Raises: CheckpointError saying what differs.
    """
    written = ModelDirectory(directory)
    if written.spec != spec:
        raise CheckpointError(f"{directory}: config.json does not say what was cut: {spec}")
    count = sum(torch.Size(shape).numel() for shape in written.shapes.values())
    if count != spec.num_parameters:
        raise CheckpointError(
            f"{directory}: holds {count:,} parameters, {spec.num_parameters:,} were to be written"
        )


def check_logits(directory: Path, expected: HybridLM) -> None:
    """Check that a written model predicts what one in memory does, bit for bit.

    Raises: CheckpointError saying how far they are apart.
    """
    tokens = torch.arange(16)[None] % expected.spec.vocab_size
    with torch.no_grad():
        found, wanted = load(directory)(tokens), expected(tokens)
    if not torch.equal(found, wanted):
        worst = float((found - wanted).abs().max())
        raise CheckpointError(
            f"{directory}: logits of the written child differ by {worst:g} from the one in memory"
        )


def _num_bytes(
    source: ModelDirectory, child: ModelSpec, parts: Mapping[str, Slice]
) -> dict[str, int]:
    shapes = HybridLM(child, device="meta").state_dict()
    return {
        name: shapes[name].numel() * source.tensor(part.source).element_size()
        for name, part in parts.items()
    }


def _layer_table(
    parent: ModelSpec, cut: Cut, layer: int
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Return rows and columns of the tensors of one layer, by name inside the layer."""
    embedding = torch.tensor(cut.embedding)
    table: dict[str, tuple[Tensor | None, Tensor | None]] = {"norm.weight": (embedding, None)}
    letter = parent.pattern[layer]
    if letter == "*":
        for name in ("q_proj", "k_proj", "v_proj"):
            table[f"mixer.{name}.weight"] = (None, embedding)
        table["mixer.o_proj.weight"] = (embedding, None)
    elif letter == "-":
        channels = torch.tensor(cut.feed_forward[layer])
        table["mixer.up_proj.weight"] = (channels, embedding)
        table["mixer.up_proj.bias"] = (channels, None)
        table["mixer.down_proj.weight"] = (embedding, channels)
        table["mixer.down_proj.bias"] = (embedding, None)
    else:
        table |= _mamba_table(parent, cut, layer)
    return table


def _mamba_table(
    parent: ModelSpec, cut: Cut, layer: int
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    embedding, heads = torch.tensor(cut.embedding), torch.tensor(cut.mamba_heads[layer])
    inner = inner_channels(cut.mamba_heads[layer], cut.mamba_channels[layer], parent.mamba_head_dim)
    width = parent.d_inner
    shared = torch.arange(width, parent.conv_dim)  # B and C inside [x | B | C]
    conv = torch.cat([inner, shared])
    rows = torch.cat([inner, width + conv, width + parent.conv_dim + heads])
    return {
        "mixer.in_proj.weight": (rows, embedding),
        "mixer.in_proj.bias": (rows, None),
        "mixer.conv1d.weight": (conv, None),
        "mixer.conv1d.bias": (conv, None),
        "mixer.A_log": (heads, None),
        "mixer.D": (heads, None),
        "mixer.dt_bias": (heads, None),
        "mixer.norm.weight": (inner, None),
        "mixer.out_proj.weight": (embedding, inner),
        "mixer.out_proj.bias": (embedding, None),
    }
