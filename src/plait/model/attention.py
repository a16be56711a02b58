"""The self-attention mixer, letter `*`: causal, grouped-query, without positions or biases.

    q, k, v = W_q x, W_k x, W_v x;  y = W_o softmax(q k^T / sqrt(E)) v

Query head j reads key/value head j // (Hq / Hk). Order reaches attention only through the Mamba
layers around it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plait.kernels.attention import cached_attention, causal_attention, write_cache
from plait.model.layers import Linear
from plait.model.spec import ModelSpec
from plait.model.state import ForwardContext


class Attention(nn.Module):
    """Mix tokens by attention over all earlier tokens of the sequence."""

    def __init__(
        self,
        spec: ModelSpec,
        ordinal: int,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.ordinal = ordinal
        """Which attention layer this is: its place in the lists of the state."""
        self.head_dim = spec.attention_head_dim
        width = spec.hidden_size
        q_rows = spec.num_attention_heads * self.head_dim
        kv_rows = spec.num_key_value_heads * self.head_dim
        self.q_proj = Linear(width, q_rows, bias=False, dtype=dtype, device=device)
        self.k_proj = Linear(width, kv_rows, bias=False, dtype=dtype, device=device)
        self.v_proj = Linear(width, kv_rows, bias=False, dtype=dtype, device=device)
        self.o_proj = Linear(q_rows, width, bias=False, dtype=dtype, device=device)

    def forward(self, x: Float[Tensor, "B T D"], context: ForwardContext) -> Float[Tensor, "B T D"]:
        """Return the mixed tokens in x.dtype; with a state, its keys and values grow in place."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = self.q_proj(x).view(heads)  # (B, T, Hq, E)
        k = self.k_proj(x).view(heads)  # (B, T, Hk, E)
        v = self.v_proj(x).view(heads)
        state, documents, places = context.state, context.documents, context.places
        if state is None or places is None:
            y = causal_attention(q, k, v, cu_seqlens=documents)
        else:
            key_cache, value_cache = state.key[self.ordinal], state.value[self.ordinal]
            write_cache(key_cache, k, places.slots)
            write_cache(value_cache, v, places.slots)
            y = cached_attention(
                q,
                key_cache,
                value_cache,
                places.before,
                block_tables=state.tables,
                cu_seqlens=documents,
            )
        return self.o_proj(y.flatten(-2))
