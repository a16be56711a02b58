"""Who computes in which dtype.

    parameters, gradients, AdamW moments     float32, always: the masters
    linears, convolution, residual stream    the compute dtype, weights cast as they are used
    norms, dt, A, scan, softmax, loss        float32

The casts are in the model's layers, not in autocast, so training and generation cannot differ.
bfloat16 halves the activations; on processors without bfloat16 arithmetic it is slower, not faster.
"""

from typing import Literal

import torch

from plait.model.lm import HybridLM

Precision = Literal["float32", "bfloat16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def set_precision(model: HybridLM, precision: Precision) -> HybridLM:
    """Make the parameters float32 masters and choose the dtype of activations."""
    model.float()
    model.compute_dtype = _DTYPES[precision]
    return model
