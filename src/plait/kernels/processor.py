"""What the machine's processor multiplies fast."""

from functools import cache

import torch


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which matrices of `dtype` should be multiplied on `device`.

    That is `dtype`, except bfloat16 on an x86 processor without instructions for it, where PyTorch
    falls back to loops several times slower than float32: widening is faster, and more exact.
    """
    if dtype == torch.bfloat16 and device.type == "cpu" and not _multiplies_bfloat16():
        return torch.float32
    return dtype


@cache
def _multiplies_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):
        return True
    found = torch.cpu.get_capabilities()
    if found.get("architecture") != "x86_64":
        return True
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
