"""The Mamba-2 mixer, letter `M`.

    z, xBC, dt = split(W_in u)                    rows of W_in in this order
    x, B, C = split(silu(conv(xBC)))              causal and depthwise, over x, B and C alike
    dt = clamp(softplus(dt + dt_bias));  A = -exp(A_log)
    h <- exp(dt A) h + dt x B^T;  y = h C + D x   per head; head j reads group j // (H / G)
    out = W_out norm(y * silu(z))                 RMS over each of the G groups, after the gate

Source: arXiv 2405.21060; layout and parameter names of the released Nemotron-H checkpoints.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plait.kernels import mamba_native
from plait.kernels.conv import causal_conv, conv_step
from plait.kernels.documents import Documents
from plait.kernels.gated_norm import gated_rms_norm
from plait.kernels.ssd import ssd_scan
from plait.kernels.state_step import ssd_step
from plait.kernels.tiles import TILE_TOKENS
from plait.model.layers import Linear, RMSNorm, at_least_float32
from plait.model.spec import ModelSpec
from plait.model.state import ForwardContext


class DepthwiseConv(nn.Module):
    """Weights of the causal depthwise convolution; tap W - 1 meets the current token."""

    def __init__(
        self, spec: ModelSpec, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        super().__init__()
        shape = (spec.conv_dim, 1, spec.conv_kernel)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
        self.bias = (
            nn.Parameter(torch.empty(spec.conv_dim, dtype=dtype, device=device))
            if spec.use_conv_bias
            else None
        )


class Mamba2(nn.Module):
    """Mix tokens through a convolution and a selective state space; memory does not grow."""

    def __init__(
        self,
        spec: ModelSpec,
        ordinal: int,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.ordinal = ordinal
        """Which Mamba layer this is: its place in the lists of the state."""
        self.in_proj = Linear(
            spec.hidden_size, spec.in_proj_dim, spec.use_bias, dtype=dtype, device=device
        )
        self.conv1d = DepthwiseConv(spec, dtype, device)
        heads = spec.mamba_num_heads
        self.A_log = nn.Parameter(torch.empty(heads, dtype=dtype, device=device))
        self.D = nn.Parameter(torch.empty(heads, dtype=dtype, device=device))
        self.dt_bias = nn.Parameter(torch.empty(heads, dtype=dtype, device=device))
        self.norm = RMSNorm(spec.d_inner, spec.norm_eps, dtype, device)
        self.out_proj = Linear(
            spec.d_inner, spec.hidden_size, spec.use_bias, dtype=dtype, device=device
        )

    def forward(self, u: Float[Tensor, "B T D"], context: ForwardContext) -> Float[Tensor, "B T D"]:
        """Return the mixed tokens in u.dtype; dt, A and the scan run in at least float32."""
        state, documents = context.state, context.documents
        conv, ssm = (state.conv[self.ordinal], state.ssm[self.ordinal]) if state else (None, None)
        if context.is_single_step and conv is not None and ssm is not None:
            z, xbc, dt, A = self._split(self.in_proj(u))
            return self._project_out(self._step(xbc, dt, A, conv, ssm), z)
        parts = []
        for part in u.split(_tile_tokens(u, context), dim=1):
            out, conv, ssm = self._mix(part, conv, ssm, documents)
            parts.append(out)
        if state and conv is not None and ssm is not None:
            state.conv[self.ordinal].copy_(conv)
            state.ssm[self.ordinal].copy_(ssm)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _mix(
        self, u: Tensor, conv: Tensor | None, ssm: Tensor | None, documents: Documents | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the mixed tokens (B, T, D) and both states behind them (training: None)."""
        projected, weights = self.in_proj(u), self._weights()
        if conv is None and self._is_unclamped and mamba_native.takes(projected, weights):
            sizes, documents = self._sizes(), Documents.of(documents, projected)
            mixed = mamba_native.mix(projected, weights, sizes, documents)
            return self.out_proj(mixed), None, None
        z, xbc, dt, A = self._split(projected)
        y, conv, ssm = self._scan(xbc, dt, A, conv, ssm, documents)
        return self._project_out(y, z), conv, ssm

    def _weights(self) -> mamba_native.Weights:
        conv, norm = self.conv1d, self.norm.weight
        return mamba_native.Weights(
            conv.weight[:, 0], conv.bias, self.dt_bias, self.A_log, self.D, norm
        )

    def _sizes(self) -> mamba_native.Sizes:
        spec = self.spec
        heads = spec.mamba_num_heads, spec.mamba_head_dim
        return mamba_native.Sizes(*heads, spec.num_groups, spec.state_size, spec.norm_eps)

    @property
    def _is_unclamped(self) -> bool:
        return tuple(self.spec.time_step_limit) == (0.0, float("inf"))

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return z (B, T, d_inner), xBC (B, T, conv_dim), dt (B, T, H) and A (H)."""
        spec = self.spec
        z, xbc, dt = projected.split([spec.d_inner, spec.conv_dim, spec.mamba_num_heads], -1)
        dt = at_least_float32(dt)
        dt = F.softplus(dt + self.dt_bias.to(dt.dtype))
        if not self._is_unclamped:
            dt = dt.clamp(*spec.time_step_limit)
        return z, xbc, dt, -self.A_log.to(dt.dtype).exp()

    def _project_out(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate and normalise (B, T, H, P), and return (B, T, D)."""
        norm, num_groups = self.norm, self.spec.num_groups
        return self.out_proj(gated_rms_norm(y.flatten(-2), z, norm.weight, norm.eps, num_groups))

    def _scan(
        self,
        xbc: Tensor,
        dt: Tensor,
        A: Tensor,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run any number of tokens: (B, T, conv_dim) -> (B, T, H, P), and both states behind."""
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        xbc, last = causal_conv(xbc, weight, bias, initial_state=conv_state, cu_seqlens=documents)
        x, B, C = self._split_heads(xbc)
        y, final = ssd_scan(x, dt, A, B, C, self.D, initial_state=ssm_state, cu_seqlens=documents)
        return y, last, final

    def _step(
        self, xbc: Tensor, dt: Tensor, A: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> Tensor:
        """Run one token per row, states in place: (B, 1, conv_dim) -> (B, 1, H, P)."""
        xbc = conv_step(xbc[:, 0], conv_state, self.conv1d.weight[:, 0], self.conv1d.bias)
        x, B, C = self._split_heads(xbc)
        return ssd_step(x, dt[:, 0], A, B, C, self.D, ssm_state)[:, None]

    def _split_heads(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (..., H, P), B (..., G, N) and C (..., G, N)."""
        spec = self.spec
        group_width = spec.num_groups * spec.state_size
        x, B, C = xbc.split([spec.d_inner, group_width, group_width], -1)
        heads = (*xbc.shape[:-1], spec.mamba_num_heads, spec.mamba_head_dim)
        groups = (*xbc.shape[:-1], spec.num_groups, spec.state_size)
        return x.view(heads), B.view(groups), C.view(groups)


def _tile_tokens(u: Tensor, context: ForwardContext) -> int:
    """Return how many tokens of each row to mix at once: all of packed rows and in training."""
    num_rows, num_tokens = u.shape[:2]
    if torch.is_grad_enabled() or context.documents is not None:
        return max(num_tokens, 1)
    return max(TILE_TOKENS // num_rows, 1)
