"""What a hybrid model remembers of the tokens it has read.

One row per sequence. A Mamba layer keeps the last W - 1 inputs of its convolution and its SSM
state, whose size does not grow; an attention layer keeps keys and values, which grow with the
tokens; a feed-forward layer keeps nothing. All tensors are written in place, and `rows` gives
views, so an engine holds one large state and runs any dense range of its rows.

Keys and values lie in blocks. A plain state (`empty`) gives each row one block as long as it may
ever grow. A paged state (`paged`) has a pool of short blocks that rows own by `tables`: which block
belongs to whom is decided by the engine, and rows may share blocks that are full.

`ForwardContext` is what the layers of one forward call share: where documents begin and which
state they continue.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from plait.core.errors import CapacityError
from plait.kernels.documents import Documents
from plait.model.spec import ModelSpec

BLOCK_TOKENS = 32
"""Tokens of a block of a paged state; the scan's chunks on a CPU are as long."""
NULL_BLOCK = 0
"""The block that table entries without a block point to: all zeros, never written."""


class HybridState:
    """Convolution, SSM and key/value state of `num_sequences` rows.

    conv[i] is (S, conv_dim, W - 1) and ssm[i] is (S, H, P, N), for the i-th Mamba layer; key[i] and
    value[i] are (blocks, tokens per block, Hk, E), for the i-th attention layer. lengths is int64
    (S,) on the CPU: tokens each row has read, which are also the valid entries of its keys and
    values. tables is int64 (S, most blocks) beside the blocks, or None: row s owns block s alone.
    """

    def __init__(
        self,
        conv: list[Tensor],
        ssm: list[Tensor],
        key: list[Tensor],
        value: list[Tensor],
        lengths: Tensor,
        tables: Tensor | None = None,
    ) -> None:
        self.conv, self.ssm, self.key, self.value = conv, ssm, key, value
        self.lengths, self.tables = lengths, tables

    @classmethod
    def empty(
        cls, spec: ModelSpec, num_sequences: int, capacity_tokens: int, **options: Any
    ) -> "HybridState":
        """Return the state of `num_sequences` rows that have read nothing.

        Options: dtype is that of convolution, keys and values (the model's compute dtype, float32);
        the SSM state is float32, or float64 if dtype is, unless `ssm_dtype` says otherwise; device.
        """
        state = cls._uninitialised(spec, num_sequences, num_sequences, capacity_tokens, **options)
        for tensor in (*state.conv, *state.ssm, *state.key, *state.value):
            tensor.zero_()
        return state

    @classmethod
    def paged(
        cls,
        spec: ModelSpec,
        num_sequences: int,
        num_blocks: int,
        capacity_tokens: int,
        **options: Any,
    ) -> "HybridState":
        """Return a state whose rows own none of its `num_blocks` blocks yet, NULL_BLOCK counted.

        Memory is not touched before it is used: `reset_row` and `assign` clear what they hand out.
        Options as for `empty`.
        """
        state = cls._uninitialised(spec, num_sequences, num_blocks, BLOCK_TOKENS, **options)
        most_blocks = -(-capacity_tokens // BLOCK_TOKENS)
        state.tables = torch.full(
            (num_sequences, most_blocks), NULL_BLOCK, device=options.get("device")
        )
        for tensor in (*state.key, *state.value):
            tensor[NULL_BLOCK].zero_()
        return state

    @classmethod
    def _uninitialised(
        cls,
        spec: ModelSpec,
        num_sequences: int,
        num_blocks: int,
        block_tokens: int,
        *,
        dtype: torch.dtype = torch.float32,
        ssm_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "HybridState":
        if ssm_dtype is None:
            ssm_dtype = torch.promote_types(dtype, torch.float32)
        dtypes = {"conv": dtype, "ssm": ssm_dtype, "key": dtype, "value": dtype}
        tensors = {
            name: [torch.empty(shape, dtype=dtypes[name], device=device) for shape in shapes]
            for name, shapes in _shapes(spec, num_sequences, num_blocks, block_tokens).items()
        }
        conv, ssm, key, value = tensors.values()
        return cls(conv, ssm, key, value, torch.zeros(num_sequences, dtype=torch.int64))

    @property
    def num_sequences(self) -> int:
        """S, rows."""
        return len(self.lengths)

    @property
    def capacity_tokens(self) -> int | None:
        """Tokens a row can hold, or None if the model has no attention and any number fits."""
        if not self.key:
            return None
        most_blocks = 1 if self.tables is None else self.tables.shape[1]
        return most_blocks * self.key[0].shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors but the tables."""
        tensors = [*self.conv, *self.ssm, *self.key, *self.value]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def rows(self, start: int, stop: int) -> "HybridState":
        """Return rows start:stop as views: what a forward call writes there, this state sees."""
        key, value, tables = self.key, self.value, self.tables
        if tables is None:
            key = [tensor[start:stop] for tensor in key]
            value = [tensor[start:stop] for tensor in value]
        return HybridState(
            conv=[tensor[start:stop] for tensor in self.conv],
            ssm=[tensor[start:stop] for tensor in self.ssm],
            key=key,
            value=value,
            lengths=self.lengths[start:stop],
            tables=None if tables is None else tables[start:stop],
        )

    def swap_rows(self, first: int, second: int) -> None:
        """Exchange two rows; blocks of a paged state stay where they are."""
        by_row = [*self.conv, *self.ssm, self.lengths]
        by_row += [*self.key, *self.value] if self.tables is None else [self.tables]
        for tensor in by_row:
            kept = tensor[first].clone()
            tensor[first] = tensor[second]
            tensor[second] = kept

    def copy_row_to(self, row: int, other: "HybridState", other_row: int) -> None:
        """Copy convolution, SSM state and length of a row into a row of another state."""
        pairs = zip((*self.conv, *self.ssm), (*other.conv, *other.ssm), strict=True)
        for source, target in pairs:
            target[other_row].copy_(source[row])
        other.lengths[other_row] = self.lengths[row]

    def reset_row(self, row: int) -> None:
        """Make a row as if it had read nothing; a row of a paged state loses its blocks."""
        for tensor in (*self.conv, *self.ssm):
            tensor[row].zero_()
        self.lengths[row] = 0
        if self.tables is not None:
            self.tables[row] = NULL_BLOCK

    def assign(self, row: int, start: int, blocks: Sequence[int], *, are_new: bool = True) -> None:
        """Let `blocks` be blocks start, start + 1, ... of a row of a paged state; new ones are
        cleared."""
        assert self.tables is not None
        ids = torch.tensor(blocks, device=self.tables.device)
        self.tables[row, start : start + len(blocks)] = ids
        if are_new:
            for tensor in (*self.key, *self.value):
                tensor.index_fill_(0, ids, 0.0)


def _shapes(
    spec: ModelSpec, num_sequences: int, num_blocks: int, block_tokens: int
) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of the state's four lists of tensors."""
    conv = num_sequences, spec.conv_dim, spec.conv_kernel - 1
    ssm = num_sequences, spec.mamba_num_heads, spec.mamba_head_dim, spec.state_size
    kv = num_blocks, block_tokens, spec.num_key_value_heads, spec.attention_head_dim
    num_mamba, num_attention = spec.num_mamba_layers, spec.num_attention_layers
    return {
        "conv": [conv] * num_mamba,
        "ssm": [ssm] * num_mamba,
        "key": [kv] * num_attention,
        "value": [kv] * num_attention,
    }


def _check_shapes(state: HybridState, spec: ModelSpec) -> None:
    # Native kernels read and write states by pointer, in the sizes of the model.
    num_blocks, block_tokens = state.key[0].shape[:2] if state.key else (0, 0)
    for name, wanted in _shapes(spec, state.num_sequences, num_blocks, block_tokens).items():
        found = [tensor.shape for tensor in getattr(state, name)]
        if found != wanted:
            raise ValueError(
                f"the state is not one of this model: its {len(found)} tensors `{name}` have "
                f"shapes {sorted({*map(tuple, found)})}, the model has {len(wanted)} layers and "
                f"needs {sorted({*wanted})}; make it with HybridState.empty(model.spec, ...)"
            )


class CachePlaces(NamedTuple):
    """Where the new tokens of one forward call go, for all attention layers alike."""

    slots: Tensor
    """int64, per new token its place counted through all blocks."""
    before: list[int]
    """Tokens each sequence held before."""


class ForwardContext(NamedTuple):
    """What the layers of one forward call share."""

    documents: Documents | None = None
    """Where the documents of a packed row begin, or None for plain rows."""
    state: HybridState | None = None
    """The state that rows or documents continue, or None to start from nothing."""
    is_single_step: bool = False
    """Every row brings exactly one token and has a state."""
    places: CachePlaces | None = None
    """Set with a state if the model has attention layers."""


def continue_state(
    state: HybridState, spec: ModelSpec, tokens: Int[Tensor, "B T"], documents: Documents | None
) -> tuple[ForwardContext, Int[Tensor, " S"] | int]:
    """Return the context of a call that continues `state`, and the new tokens of each row.

    Raises: ValueError if the state is not one of `spec` or rows and documents do not match,
    CapacityError if there is no room.
    """
    _check_shapes(state, spec)
    if documents is None:
        num_rows, num_new = tokens.shape
    else:
        num_rows, num_new = len(documents), torch.tensor(documents.bounds).diff()
    if num_rows != state.num_sequences:
        raise ValueError(
            f"{num_rows} sequences of tokens, but {state.num_sequences} rows of state: "
            "give state.rows(start, stop) that match"
        )
    capacity = state.capacity_tokens
    needed = int((state.lengths + num_new).max())
    if capacity is not None and needed > capacity:
        raise CapacityError(
            f"a sequence would hold {needed} tokens, its state has room for {capacity}: "
            "make a state with more room or stop earlier"
        )
    is_single_step = documents is None and tokens.shape[1] == 1
    places = _places(state, num_new, tokens.numel()) if state.key else None
    return ForwardContext(documents, state, is_single_step, places), num_new


def _places(state: HybridState, num_new: Tensor | int, total: int) -> CachePlaces:
    """Lay the new tokens behind those that each row holds."""
    counts = torch.as_tensor(num_new).expand(state.num_sequences)
    rows = torch.repeat_interleave(counts, output_size=total)
    firsts = counts.cumsum(0) - counts
    positions = torch.arange(total) + (state.lengths - firsts)[rows]
    block_tokens = state.key[0].shape[1]
    device = state.key[0].device
    if state.tables is None:
        slots = (rows * block_tokens + positions).to(device)
    else:
        rows, positions = rows.to(device), positions.to(device)
        blocks = state.tables[rows, positions // block_tokens]
        slots = blocks * block_tokens + positions % block_tokens
    return CachePlaces(slots, state.lengths.tolist())
