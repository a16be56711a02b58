"""What is measured while calibration rows pass through one layer.

Every channel's activation is averaged over the tokens of a row, |x| first, and the rows are joined
by the root of the sum of squares (arXiv 2407.14679, 2504.11409). Where channels are looked at:

    embedding      output of the norm in front of the layer
    feed-forward   input of the second linear, after the squared ReLU
    Mamba          the x rows of in_proj, before the convolution; (H, P)
    attention      input of o_proj, the l2 norm over a head's channels standing for |x|

Norms are looked at too, for what `scores` corrects them by: E[x_c^2 / r^2], over all tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from plait.compress.scores import gated_norm_name, norm_name
from plait.model.attention import Attention
from plait.model.layers import at_least_float32
from plait.model.lm import Layer
from plait.model.mamba2 import Mamba2
from plait.model.spec import ModelSpec
from plait.model.state import ForwardContext


class Activation:
    """Mean over the tokens of a row, l2 over rows."""

    def __init__(self) -> None:
        self._squares: Tensor | None = None

    def add(self, magnitudes: Float[Tensor, "B T *channels"]) -> None:
        """Take in |x| of some rows."""
        means = at_least_float32(magnitudes).mean(1).double()
        squares = means.square_().sum(0)
        self._squares = squares if self._squares is None else self._squares + squares

    def score(self) -> Tensor:
        """Return the channels' scores, float32 on the CPU."""
        assert self._squares is not None
        return self._squares.sqrt().float().cpu()


class Moments:
    """E[x_c^2 / r^2] over tokens of what a norm sees."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._num_tokens = 0

    def add(self, squares: Float[Tensor, "tokens channels"], weights: Tensor) -> None:
        """Take in x_c^2 of some tokens and 1 / r^2 of each (tokens,)."""
        added = (weights @ squares).double()
        self._sum = added if self._sum is None else self._sum + added
        self._num_tokens += len(squares)

    def mean(self) -> Tensor:
        """Return the moments, float64 on the CPU."""
        assert self._sum is not None
        return (self._sum / self._num_tokens).cpu()


class Observer:
    """Runs one layer as it is and keeps what its channels did."""

    def __init__(self, spec: ModelSpec, index: int, layer: Layer) -> None:
        self._spec, self._index, self._layer = spec, index, layer
        self._norm = NormObserver(layer.norm.eps)
        self._inner, self._gated = Activation(), Moments()

    def __call__(self, x: Float[Tensor, "B T D"], context: ForwardContext) -> Tensor:
        """Return the residual stream after the layer."""
        u = self._layer.norm(x)
        self._norm.add(x, u)
        mixer = self._layer.mixer
        if isinstance(mixer, Mamba2):
            with self._watch_mamba(mixer):
                return x + mixer(u, context)
        if isinstance(mixer, Attention):
            with _hook(mixer.o_proj.register_forward_pre_hook, self._see_attention):
                return x + mixer(u, context)
        h = mixer.up_proj(u).relu_().square_()
        self._inner.add(h)
        return x + mixer.down_proj(h)

    def tensors(self) -> dict[str, Tensor]:
        """Return what was measured, named as in scores.safetensors."""
        found, inner = self._norm.tensors(norm_name(self._index)), self._inner.score()
        letter = self._spec.pattern[self._index]
        if letter == "M":
            heads = (self._spec.mamba_num_heads, self._spec.mamba_head_dim)
            found[f"mamba.{self._index}"] = inner.view(heads)
            found[f"moments.{gated_norm_name(self._index)}"] = self._gated.mean()
        else:
            kind = "attention" if letter == "*" else "feed_forward"
            found[f"{kind}.{self._index}"] = inner
        return found

    @contextmanager
    def _watch_mamba(self, mixer: Mamba2) -> Iterator[None]:
        """Look at in_proj's output and at the gated norm's.

        The norm's weights are taken out and put back behind it, in front of out_proj: what comes
        between is x / r itself, even where a weight is zero.
        """
        weight = mixer.norm.weight
        mixer.norm.weight = torch.nn.Parameter(torch.ones_like(weight), requires_grad=False)

        def see_gated(_: Any, inputs: tuple[Tensor]) -> Tensor:
            n = inputs[0]
            squares = at_least_float32(n).flatten(0, 1).square()
            self._gated.add(squares, squares.new_ones(len(squares)))
            return n * weight.to(n.dtype)

        def see_projected(_: Any, __: Any, output: Tensor) -> None:
            width = self._spec.d_inner
            self._inner.add(output[..., width : 2 * width].abs())

        try:
            with (
                _hook(mixer.in_proj.register_forward_hook, see_projected),
                _hook(mixer.out_proj.register_forward_pre_hook, see_gated),
            ):
                yield
        finally:
            mixer.norm.weight = weight

    def _see_attention(self, _: Any, inputs: tuple[Tensor]) -> None:
        heads = at_least_float32(inputs[0]).unflatten(-1, (self._spec.num_attention_heads, -1))
        self._inner.add(heads.norm(dim=-1))


class NormObserver:
    """A norm that reads the residual stream: what it sees and what it says."""

    def __init__(self, eps: float) -> None:
        self._activation, self._moments, self._eps = Activation(), Moments(), eps

    def add(self, x: Float[Tensor, "B T D"], normed: Float[Tensor, "B T D"]) -> None:
        """Take in some rows in front of the norm and behind it."""
        self._activation.add(normed.abs())
        squares = at_least_float32(x).flatten(0, 1).square()
        self._moments.add(squares, 1.0 / (squares.mean(1) + self._eps))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return what was measured of the norm called `name`."""
        score, moments = self._activation.score(), self._moments.mean()
        return {f"embedding.{name}": score, f"moments.{name}": moments}


@contextmanager
def _hook(register: Any, see: Any) -> Iterator[None]:
    handle = register(see)
    try:
        yield
    finally:
        handle.remove()
