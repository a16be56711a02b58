import pytest
import torch

from plait.kernels.token_logprobs import token_logprobs
from plait.kernels.tolerances import assert_close

T, D, V = 63, 10, 77


def make_inputs(dtype=torch.float64, weight_dtype=None, T=T, V=V):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(weight_dtype or dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (T,))


def naive(hidden, weight, targets):
    return torch.log_softmax(hidden @ weight.t(), -1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("chunk_tokens", [1, 13, 63, 1000])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_agrees_with_the_whole_logits(dtype, weight_dtype, chunk_tokens):
    hidden, weight, targets = make_inputs(dtype, weight_dtype)
    scale = torch.randn(T, dtype=torch.float64)
    got = token_logprobs(hidden, weight, targets, chunk_tokens)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    grads = torch.autograd.grad((got * scale).sum(), (hidden, weight))
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight.to(dtype))]
    want = naive(*wide, targets)
    wants = torch.autograd.grad((want * scale).sum(), wide)
    assert_close("cross_entropy", dtype, "logprobs", got, want)
    for name, g, w, like in zip(("hidden", "weight"), grads, wants, (hidden, weight), strict=True):
        assert g.dtype == like.dtype
        assert_close("cross_entropy", dtype, name, g, w)


def test_gradcheck():
    hidden, weight, targets = make_inputs(T=5, V=4)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, targets, 2), (hidden, weight))


def test_no_tokens_and_frozen_arguments():
    hidden, weight, targets = make_inputs()
    assert token_logprobs(hidden[:0], weight, targets[:0]).shape == (0,)
    token_logprobs(hidden, weight.detach(), targets).sum().backward()
    assert weight.grad is None
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        token_logprobs(hidden, weight, targets, 0)
