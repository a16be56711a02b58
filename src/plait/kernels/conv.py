"""Depthwise causal convolution with SiLU: Mamba's short memory."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class ConvOutput(NamedTuple):
    """What a convolution returns: activations, and each sequence's last W-1 inputs, newest last."""

    y: Float[Tensor, "B T Ch"]
    final_state: Float[Tensor, "S Ch W_minus_1"]


def causal_conv(
    x: Float[Tensor, "B T Ch"],
    weight: Float[Tensor, "Ch W"],
    bias: Float[Tensor, " Ch"] | None,
    *,
    initial_state: Float[Tensor, "S Ch W_minus_1"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
) -> ConvOutput:
    """Convolve each channel with its last W inputs and apply SiLU."""
    if cu_seqlens is None:
        return _rows(x, weight, bias, initial_state)
    bounds = cu_seqlens.tolist()
    parts = [
        _rows(x[:, i:j], weight, bias, None if initial_state is None else initial_state[s : s + 1])
        for s, (i, j) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
    ]
    return ConvOutput(torch.cat([p.y for p in parts], 1), torch.cat([p.final_state for p in parts]))


def _rows(x, weight, bias, initial_state):
    W = weight.shape[1]
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], x.shape[2], W - 1)
    history = torch.cat([initial_state.to(x.dtype).transpose(1, 2), x], dim=1)
    y = sum(history[:, w : w + x.shape[1]] * weight[:, w].to(x.dtype) for w in range(W))
    if bias is not None:
        y = y + bias.to(x.dtype)
    return ConvOutput(F.silu(y), history[:, x.shape[1] :].transpose(1, 2))


def conv_step(
    x: Float[Tensor, "B Ch"],
    state: Float[Tensor, "B Ch W_minus_1"],
    weight: Float[Tensor, "Ch W"],
    bias: Float[Tensor, " Ch"] | None,
) -> Float[Tensor, "B Ch"]:
    """Convolve one token and shift it into the state in place."""
    window = torch.cat([state, x[..., None].to(state.dtype)], dim=-1)
    state.copy_(window[..., 1:])
    y = (window * weight.to(x.dtype)).sum(-1)
    return F.silu(y if bias is None else y + bias.to(x.dtype))
