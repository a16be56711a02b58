"""The hybrid language model: one forward for training, prefill and single steps.

    x = embed(tokens);  x = x + mixer(norm(x)) for each letter of the pattern
    logits = head(norm(x))

Parameter names are those of the released checkpoints. Precision: parameters may be float32 masters
while activations are bfloat16 (`compute_dtype`); norms, dt, A, the scan and the softmax always
run in at least float32, the residual stream in the compute dtype.

It is not a trainer and not a generator: losses are built on `hidden`, sampling on `forward`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from plait.kernels.documents import Documents
from plait.model.attention import Attention
from plait.model.feed_forward import FeedForward
from plait.model.layers import Embedding, Linear, RMSNorm, at_least_float32
from plait.model.mamba2 import Mamba2
from plait.model.spec import ModelSpec
from plait.model.state import ForwardContext, HybridState, continue_state

Device = torch.device | str | None


class Layer(nn.Module):
    """One residual layer, x + mixer(norm(x))."""

    def __init__(self, spec: ModelSpec, index: int, dtype: torch.dtype, device: Device) -> None:
        super().__init__()
        letter = spec.pattern[index]
        ordinal = spec.pattern[:index].count(letter)
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps, dtype, device)
        if letter == "M":
            self.mixer = Mamba2(spec, ordinal, dtype, device)
        elif letter == "*":
            self.mixer = Attention(spec, ordinal, dtype, device)
        else:
            self.mixer = FeedForward(spec, dtype, device)

    def forward(self, x: Float[Tensor, "B T D"], context: ForwardContext) -> Float[Tensor, "B T D"]:
        """Return the residual stream after this layer."""
        return x + self.mixer(self.norm(x), context)


class Backbone(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: Device) -> None:
        super().__init__()
        self.embeddings = Embedding(spec.vocab_size, spec.hidden_size, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            Layer(spec, index, dtype, device) for index in range(spec.num_layers)
        )
        self.norm_f = RMSNorm(spec.hidden_size, spec.norm_eps, dtype, device)

    def forward(
        self, tokens: Int[Tensor, "B T"], context: ForwardContext, dtype: torch.dtype
    ) -> Float[Tensor, "B T D"]:
        """Return hidden states after the final norm, in `dtype`."""
        x = F.embedding(tokens, self.embeddings.weight).to(dtype)
        for layer in self.layers:
            x = layer(x, context)
        return self.norm_f(x)


class HybridLM(nn.Module):
    """A language model of Mamba-2, attention and feed-forward layers.

    Its parameters are uninitialised memory: load a checkpoint (`plait.load`) or call
    `plait.model.init.init_weights`. `compute_dtype` is the dtype of activations; None means that of
    the embedding.
    """

    def __init__(
        self, spec: ModelSpec, *, dtype: torch.dtype = torch.float32, device: Device = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.compute_dtype: torch.dtype | None = None
        self.backbone = Backbone(spec, dtype, device)
        self.lm_head = Linear(
            spec.hidden_size, spec.vocab_size, bias=False, dtype=dtype, device=device
        )

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
        state: HybridState | None = None,
        logits_for: Int[Tensor, " K"] | None = None,
    ) -> Float[Tensor, "B T V"] | Float[Tensor, "K V"]:
        """Return next-token logits of every position, or of the flat positions `logits_for`.

        See `hidden` for cu_seqlens and state. `logits_for` indexes B * T positions row by row.
        Numerics: logits are computed in the compute dtype and returned in at least float32.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and state is None):
            hidden = self.hidden(tokens, cu_seqlens=cu_seqlens, state=state)
            if logits_for is not None:
                hidden = hidden.flatten(0, 1)[logits_for]
            return at_least_float32(self.lm_head(hidden))

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
        state: HybridState | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return hidden states after the final norm, in the compute dtype.

        cu_seqlens marks the documents of a packed row (B = 1); nothing passes between them. With a
        state, row b (or document s of a packed row) continues row b (s) of the state, which is
        updated in place; a state is for inference, so nothing is recorded for autograd then.

        Raises: ValueError if tokens are no batch of integers or shapes contradict each other,
        CapacityError if the state is full.
        """
        _check_batch(tokens)
        dtype = self.compute_dtype or self.backbone.embeddings.weight.dtype
        documents = None if cu_seqlens is None else Documents(cu_seqlens.to(tokens.device))
        if state is None:
            return self.backbone(tokens, ForwardContext(documents), dtype)
        with torch.no_grad():
            context, num_new = continue_state(state, self.spec, tokens, documents)
            hidden = self.backbone(tokens, context, dtype)
            state.lengths += num_new
        return hidden


def _check_batch(tokens: Tensor) -> None:
    # Native kernels read by pointer what these axes say: without one they would read anything.
    is_batch = tokens.ndim == 2 and tokens.numel() > 0
    if not is_batch or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; give token ids as integers "
            "(B, T), at least one; add a batch axis to a single row: tokens[None]"
        )
