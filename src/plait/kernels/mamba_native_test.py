import pytest
import torch
from torch.nn import functional as F

from plait.kernels import mamba_native, native
from plait.kernels.conv import causal_conv
from plait.kernels.documents import Documents
from plait.kernels.gated_norm import gated_rms_norm
from plait.kernels.ssd import ssd_scan
from plait.kernels.tolerances import assert_close

H, P, G, N = 4, 20, 2, 12
SIZES = mamba_native.Sizes(H, P, G, N, 1e-5)
CHANNELS = H * P + 2 * G * N
NAMES = ("projected", *mamba_native.Weights._fields)
PACKED = [0, 1, 1, 34, 98, 161]

pytestmark = pytest.mark.skipif(
    native.library().functions is None, reason=f"native kernels are {native.library().status}"
)


def make_inputs(*rows, dtype, with_bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = (*rows, H * P + CHANNELS + H), (CHANNELS, 4), (CHANNELS,), (H,), (H,), (H,), (H * P,)
    tensors = [torch.randn(s, generator=generator) for s in shapes]
    tensors[0] = tensors[0].to(dtype)
    return [t.requires_grad_() if with_bias or i != 2 else None for i, t in enumerate(tensors)]


def composition(projected, taps, conv_bias, dt_bias, A_log, D, norm, documents):
    z, xbc, dt = projected.split([H * P, CHANNELS, H], -1)
    xbc, _ = causal_conv(xbc, taps, conv_bias, cu_seqlens=documents)
    x, B, C = xbc.split(SIZES.widths, -1)
    dt = F.softplus(dt.to(dt_bias.dtype) + dt_bias)
    B, C = B.unflatten(-1, (G, N)), C.unflatten(-1, (G, N))
    A = -A_log.exp()
    y, _ = ssd_scan(x.unflatten(-1, (H, P)), dt, A, B, C, D, cu_seqlens=documents)
    return gated_rms_norm(y.flatten(-2), z, norm, SIZES.eps, G)


def native_mix(projected, *rest):
    *weights, documents = rest
    weights = mamba_native.Weights(*weights)
    assert mamba_native.takes(projected, weights)
    return mamba_native.mix(projected, weights, SIZES, Documents.of(documents, projected))


def with_gradients(function, inputs, documents):
    out = function(*inputs, documents)
    generator = torch.Generator().manual_seed(1)
    grad = (torch.randint(-8, 9, out.shape, generator=generator) / 8).to(out.dtype)
    wanted = [t for t in inputs if t is not None]
    found = iter(torch.autograd.grad(out, wanted, grad))
    return [out, *(None if t is None else next(found) for t in inputs)]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["1", "63", "257", "packed"])
def test_agrees_with_the_composition(case, dtype, with_bias):
    bounds = torch.tensor(PACKED) if case == "packed" else None
    rows = (1, PACKED[-1]) if case == "packed" else (2, int(case))
    inputs = make_inputs(*rows, dtype=dtype, with_bias=with_bias)
    got = with_gradients(native_mix, inputs, bounds)
    with native.off():
        if dtype == torch.float32:
            wide = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
            want = with_gradients(composition, wide, bounds)
        else:  # the roundings between the steps are part of what is compared
            want = with_gradients(composition, inputs, bounds)
    for name, like, g, w in zip(("out", *NAMES), [got[0], *inputs], got, want, strict=True):
        # a single token's output does not depend on A: rounding alone in bfloat16
        if like is not None and not (name == "A_log" and case == "1"):
            assert g.dtype == like.dtype
            assert_close("mamba_mix", dtype, f"{case}: {name}", g, w)


def test_only_training_takes_it():
    projected, *weights = make_inputs(1, 3, dtype=torch.float32)
    weights = mamba_native.Weights(*weights)
    assert mamba_native.takes(projected, weights)
    assert not mamba_native.takes(projected.detach(), weights)
    with torch.no_grad():
        assert not mamba_native.takes(projected, weights)
    assert not mamba_native.takes(projected[0], weights)
    with native.off():
        assert not mamba_native.takes(projected, weights)
    assert not mamba_native.takes(projected, weights._replace(D=weights.D.double()))
