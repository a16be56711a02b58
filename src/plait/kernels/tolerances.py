"""How far each kernel may stand from its reference, in one table that nothing outside loosens.

An entry is the root mean square of the difference over that of the reference, for results and
gradients alike; no single element may be off by more than fifty times that, measured against the
largest. float64 shows that the algebra is right, float32 that nothing is lost to cancellation,
bfloat16 (whose inputs the reference sees already rounded) that only results are rounded.
"""

import torch
from torch import Tensor

RELATIVE_RMS: dict[tuple[str, torch.dtype], float] = {
    ("ssd_scan", torch.float64): 1e-12,
    ("ssd_scan", torch.float32): 3e-6,
    ("ssd_scan", torch.bfloat16): 3e-3,
    # a sum over all tokens of differences: see the end of ssd's docstring
    ("ssd_scan dA", torch.float64): 1e-12,
    ("ssd_scan dA", torch.float32): 5e-5,
    ("ssd_scan dA", torch.bfloat16): 1e-2,
    ("ssd_step", torch.float64): 1e-13,
    ("ssd_step", torch.float32): 1e-6,
    ("ssd_step", torch.bfloat16): 3e-3,
    ("causal_conv", torch.float64): 1e-13,
    ("causal_conv", torch.float32): 1e-6,
    ("causal_conv", torch.bfloat16): 3e-3,
    ("mamba_mix", torch.float32): 2e-5,
    ("mamba_mix", torch.bfloat16): 1e-2,  # beside the torch form, which rounds at the same places
    ("rms_norm", torch.float64): 1e-13,
    ("rms_norm", torch.float32): 1e-6,
    ("rms_norm", torch.bfloat16): 3e-3,
    ("attention", torch.float64): 1e-13,
    ("attention", torch.float32): 2e-6,
    ("attention", torch.bfloat16): 1e-2,
    ("cross_entropy", torch.float64): 1e-13,
    ("cross_entropy", torch.float32): 1e-6,
    ("cross_entropy", torch.bfloat16): 1e-2,
    ("kl_divergence", torch.float64): 1e-12,
    ("kl_divergence", torch.float32): 2e-6,
    ("kl_divergence", torch.bfloat16): 1e-2,
    ("linear", torch.float64): 1e-13,
    ("linear", torch.float32): 1e-6,
    ("linear", torch.bfloat16): 3e-3,
    ("feed_forward", torch.float64): 1e-13,
    ("feed_forward", torch.float32): 2e-6,
    ("feed_forward", torch.bfloat16): 1e-2,
}


def assert_close(op: str, dtype: torch.dtype, name: str, got: Tensor, want: Tensor) -> None:
    """Check a result against a float64 reference by the table.

    Raises: AssertionError naming op, result and both errors; also if shapes differ or anything is
    not finite.
    """
    limit = RELATIVE_RMS[op, dtype]
    got, want = got.detach(), want.detach()
    if got.shape != want.shape:
        raise AssertionError(f"{op} {name}: shape {tuple(got.shape)}, want {tuple(want.shape)}")
    if got.numel() == 0:
        return
    got, want = got.double(), want.double()
    difference = got - want
    # a reference that is zero up to rounding has no scale of its own
    is_zero = bool(want.abs().max() < 1e-12)
    rms_scale, worst_scale = (1.0, 1.0) if is_zero else (_rms(want), float(want.abs().max()))
    rms, worst = _rms(difference) / rms_scale, float(difference.abs().max()) / worst_scale
    if not (rms <= limit and worst <= 50 * limit):
        raise AssertionError(
            f"{op} {dtype} {name}: relative RMS error {rms:.2e} (at most {limit:.0e}), "
            f"worst element {worst:.2e} of the largest (at most {50 * limit:.0e})"
        )


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())
