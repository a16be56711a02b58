"""What a hybrid model remembers of the tokens it has read.

One row per sequence. A Mamba layer keeps the last W - 1 inputs of its convolution and its SSM
state, whose size does not grow; an attention layer keeps keys and values, which grow with the
tokens; a feed-forward layer keeps nothing. All tensors are written in place, and `rows` gives
views, so an engine holds one large state and runs any dense range of its rows.

`ForwardContext` is what the layers of one forward call share: where documents begin and which
state they continue.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from plait.core.errors import CapacityError
from plait.kernels.documents import Documents
from plait.model.spec import ModelSpec


class HybridState:
    """Convolution, SSM and key/value state of `num_sequences` rows.

    conv[i] is (S, conv_dim, W - 1) and ssm[i] is (S, H, P, N), for the i-th Mamba layer; key[i] and
    value[i] are (S, Hk, capacity, E), for the i-th attention layer. lengths is int64 (S,) on the
    CPU: tokens each row has read, which are also the valid entries of its keys and values.
    """

    def __init__(
        self,
        conv: list[Tensor],
        ssm: list[Tensor],
        key: list[Tensor],
        value: list[Tensor],
        lengths: Tensor,
    ) -> None:
        self.conv, self.ssm, self.key, self.value = conv, ssm, key, value
        self.lengths = lengths

    @classmethod
    def empty(
        cls,
        spec: ModelSpec,
        num_sequences: int,
        capacity_tokens: int,
        *,
        dtype: torch.dtype = torch.float32,
        ssm_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "HybridState":
        """Return the state of `num_sequences` rows that have read nothing.

        dtype is that of convolution, keys and values (the model's compute dtype); the SSM state is
        float32, or float64 if dtype is, unless `ssm_dtype` says otherwise.
        """
        if ssm_dtype is None:
            ssm_dtype = torch.promote_types(dtype, torch.float32)
        conv_shape = (num_sequences, spec.conv_dim, spec.conv_kernel - 1)
        ssm_shape = (num_sequences, spec.mamba_num_heads, spec.mamba_head_dim, spec.state_size)
        kv_shape = (
            num_sequences,
            spec.num_key_value_heads,
            capacity_tokens,
            spec.attention_head_dim,
        )
        mamba, attention = range(spec.num_mamba_layers), range(spec.num_attention_layers)
        return cls(
            conv=[torch.zeros(conv_shape, dtype=dtype, device=device) for _ in mamba],
            ssm=[torch.zeros(ssm_shape, dtype=ssm_dtype, device=device) for _ in mamba],
            key=[torch.zeros(kv_shape, dtype=dtype, device=device) for _ in attention],
            value=[torch.zeros(kv_shape, dtype=dtype, device=device) for _ in attention],
            lengths=torch.zeros(num_sequences, dtype=torch.int64),
        )

    @property
    def num_sequences(self) -> int:
        """S, rows."""
        return len(self.lengths)

    @property
    def capacity_tokens(self) -> int | None:
        """Tokens a row can hold, or None if the model has no attention and any number fits."""
        return self.key[0].shape[2] if self.key else None

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [*self.conv, *self.ssm, *self.key, *self.value]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def rows(self, start: int, stop: int) -> "HybridState":
        """Return rows start:stop as views: what a forward call writes there, this state sees."""
        return HybridState(
            conv=[tensor[start:stop] for tensor in self.conv],
            ssm=[tensor[start:stop] for tensor in self.ssm],
            key=[tensor[start:stop] for tensor in self.key],
            value=[tensor[start:stop] for tensor in self.value],
            lengths=self.lengths[start:stop],
        )

    def copy_row(self, source: int, target: int) -> None:
        """Overwrite row `target` by row `source`."""
        length = int(self.lengths[source])
        for tensor in (*self.conv, *self.ssm):
            tensor[target].copy_(tensor[source])
        for tensor in (*self.key, *self.value):
            tensor[target, :, :length].copy_(tensor[source, :, :length])
        self.lengths[target] = length

    def reset_row(self, row: int) -> None:
        """Make a row as if it had read nothing."""
        for tensor in (*self.conv, *self.ssm):
            tensor[row].zero_()
        self.lengths[row] = 0

    def reserve(self, capacity_tokens: int) -> None:
        """Grow keys and values so that every row can hold `capacity_tokens`; never shrink.

        Views taken by `rows` before keep the smaller tensors: take them again.
        """
        for tensors in (self.key, self.value):
            for index, old in enumerate(tensors):
                if old.shape[2] < capacity_tokens:
                    new = old.new_zeros(*old.shape[:2], capacity_tokens, old.shape[3])
                    new[:, :, : old.shape[2]].copy_(old)
                    tensors[index] = new


class ForwardContext(NamedTuple):
    """What the layers of one forward call share."""

    documents: Documents | None = None
    """Where the documents of a packed row begin, or None for plain rows."""
    state: HybridState | None = None
    """The state that rows or documents continue, or None to start from nothing."""
    is_single_step: bool = False
    """Every row brings exactly one token and has a state."""


def continue_state(
    state: HybridState, tokens: Int[Tensor, "B T"], documents: Documents | None
) -> tuple[ForwardContext, Int[Tensor, " S"] | int]:
    """Return the context of a call that continues `state`, and the new tokens of each row.

    Raises: ValueError if rows and documents do not match, CapacityError if there is no room.
    """
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
            f"call state.reserve({needed}) first or stop earlier"
        )
    is_single_step = documents is None and tokens.shape[1] == 1
    return ForwardContext(documents, state, is_single_step), num_new
