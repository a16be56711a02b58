import pytest
import torch
from torch.nn import functional as F

from plait.kernels.cross_entropy import chunked_cross_entropy
from plait.kernels.tolerances import assert_close

T, D, V = 63, 10, 77


def make_inputs(dtype=torch.float64, weight_dtype=None, T=T, V=V):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(weight_dtype or dtype)
    targets = torch.randint(V, (T,), generator=generator)
    weights = torch.rand(T, generator=generator)
    weights[::3] = 0
    targets[::6] = -100  # may be anything where the weight is 0
    return hidden.requires_grad_(), weight.requires_grad_(), targets, weights


def naive(hidden, weight, targets, weights):
    nll = F.cross_entropy(hidden @ weight.t(), targets.clamp_min(0), reduction="none")
    return (nll * weights).sum()


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
    hidden, weight, targets, weights = make_inputs(dtype, weight_dtype)
    got = chunked_cross_entropy(hidden, weight, targets, weights, chunk_tokens)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    grads = torch.autograd.grad(3 * got, (hidden, weight))
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight.to(dtype))]
    want = naive(*wide, targets, weights.double())
    wants = torch.autograd.grad(3 * want, wide)
    assert_close("cross_entropy", dtype, "sum", got, want)
    for name, g, w, like in zip(("hidden", "weight"), grads, wants, (hidden, weight), strict=True):
        assert g.dtype == like.dtype
        assert_close("cross_entropy", dtype, name, g, w)


def test_gradcheck():
    hidden, weight, targets, weights = make_inputs(T=5, V=4)
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_cross_entropy(h, w, targets, weights, 2), (hidden, weight)
    )


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_arguments_get_no_gradient(frozen):
    inputs = list(make_inputs())
    want = torch.autograd.grad(chunked_cross_entropy(*inputs), inputs[:2])[1 - frozen]
    inputs[frozen] = inputs[frozen].detach()
    got = torch.autograd.grad(chunked_cross_entropy(*inputs), inputs[1 - frozen])[0]
    assert torch.equal(got, want)


def test_no_token_counts():
    hidden, weight, targets, weights = make_inputs()
    total = chunked_cross_entropy(hidden, weight, targets, weights * 0)
    grads = torch.autograd.grad(total, (hidden, weight))
    assert total.item() == 0
    assert not grads[0].any()
    assert not grads[1].any()


def test_large_logits_stay_finite():
    hidden, weight, targets, weights = make_inputs(torch.float32)
    total = chunked_cross_entropy(hidden * 1e4, weight, targets, weights)
    assert total.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, (hidden, weight)))


@pytest.mark.parametrize("with_gradient", [True, False])
def test_logits_of_the_whole_never_exist(with_gradient, memory):
    num_tokens, vocabulary, chunk = 400, 300, 16
    hidden, weight, targets, weights = make_inputs(torch.float32, T=num_tokens, V=vocabulary)

    def run():
        with torch.set_grad_enabled(with_gradient):
            total = chunked_cross_entropy(hidden, weight, targets, weights, chunk)
        if with_gradient:
            total.backward()

    taken = memory(run)
    assert taken.largest <= max(chunk * vocabulary, num_tokens * D, vocabulary * D)
    assert taken.peak < num_tokens * vocabulary / 2


def test_chunks_of_nothing_are_refused():
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        chunked_cross_entropy(*make_inputs(), 0)
