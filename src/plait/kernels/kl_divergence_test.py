import pytest
import torch
from torch.nn import functional as F

from plait.kernels.kl_divergence import TopK, chunked_kl, chunked_topk_kl
from plait.kernels.tolerances import assert_close

T, D, D_TEACHER, V = 63, 10, 13, 77


def make_inputs(dtype=torch.float64, T=T, V=V):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = torch.rand(T, generator=generator)
    weights[::3] = 0
    student = draw(T, D).requires_grad_(), draw(V, D).requires_grad_()
    return *student, draw(T, D_TEACHER), draw(V, D_TEACHER), weights


def naive(hidden, weight, teacher_hidden, teacher_weight, weights):
    log_q = (hidden @ weight.t()).log_softmax(-1)
    log_p = (teacher_hidden @ teacher_weight.t()).log_softmax(-1)
    each = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return (each * weights).sum()


def naive_buckets(hidden, weight, teacher, weights):
    """Write out the k + 1 outcomes of both sides, position by position."""
    q = (hidden @ weight.t()).softmax(-1)
    total = q.new_zeros(())
    for row, (ids, log_p) in enumerate(zip(teacher.ids, teacher.log_probabilities, strict=True)):
        p, outside = log_p.exp(), torch.ones(q.shape[1], dtype=torch.bool)
        outside[ids] = False
        both = [(p, q[row, ids])]
        if outside.any():
            both.append(((1 - p.sum())[None], q[row, outside].sum()[None]))
        total = total + weights[row] * sum((a * (a.log() - b.log())).sum() for a, b in both)
    return total


def topk_of(teacher_hidden, teacher_weight, k):
    found = (teacher_hidden @ teacher_weight.t()).log_softmax(-1).topk(k)
    return TopK(found.indices, found.values)


@pytest.mark.parametrize("chunk_tokens", [1, 13, 63, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_agrees_with_the_whole_logits(dtype, chunk_tokens):
    hidden, weight, *teacher, weights = make_inputs(dtype)
    got = chunked_kl(hidden, weight, *teacher, weights, chunk_tokens)
    grads = torch.autograd.grad(3 * got, (hidden, weight))
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    want = naive(*wide, *(t.double() for t in teacher), weights.double())
    wants = torch.autograd.grad(3 * want, wide)
    assert_close("kl_divergence", dtype, "sum", got, want)
    for name, g, w, like in zip(("hidden", "weight"), grads, wants, (hidden, weight), strict=True):
        assert g.dtype == like.dtype
        assert_close("kl_divergence", dtype, name, g, w)


@pytest.mark.parametrize("k", [1, 5, V - 1, V])
@pytest.mark.parametrize("chunk_tokens", [7, 63])
def test_tokens_and_tail_agree_with_their_buckets(k, chunk_tokens):
    hidden, weight, *teacher, weights = make_inputs()
    top = topk_of(*teacher, k)
    got = chunked_topk_kl(hidden, weight, top, weights, chunk_tokens)
    want = naive_buckets(hidden, weight, top, weights.double())
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    for g, w in zip(
        torch.autograd.grad(got, (hidden, weight)),
        torch.autograd.grad(want, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


def test_all_tokens_stored_is_the_full_divergence():
    hidden, weight, *teacher, weights = make_inputs()
    full = chunked_kl(hidden, weight, *teacher, weights)
    stored = chunked_topk_kl(hidden, weight, topk_of(*teacher, V), weights)
    torch.testing.assert_close(stored, full, rtol=1e-13, atol=0)
    few = chunked_topk_kl(hidden, weight, topk_of(*teacher, 4), weights)
    assert 0 < few < full  # merging outcomes can only lose


def test_a_student_equal_to_its_teacher_is_at_rest():
    hidden, weight, *_, weights = make_inputs()
    total = chunked_kl(hidden, weight, hidden.detach(), weight.detach(), weights, 16)
    grads = torch.autograd.grad(total, (hidden, weight))
    assert abs(total.item()) < 1e-12
    assert all(g.abs().max() < 1e-12 for g in grads)


def test_gradcheck():
    hidden, weight, *teacher, weights = make_inputs(T=5, V=4)
    top = topk_of(*teacher, 2)
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_kl(h, w, *teacher, weights, 2), (hidden, weight)
    )
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_topk_kl(h, w, top, weights, 2), (hidden, weight)
    )


def test_certainty_stays_finite():
    hidden, weight, teacher_hidden, teacher_weight, weights = make_inputs(torch.float32)
    sure = teacher_hidden * 1e4
    total = chunked_kl(hidden, weight, sure, teacher_weight, weights)
    top = chunked_topk_kl(hidden, weight, topk_of(sure, teacher_weight, 3), weights)
    both = chunked_topk_kl(hidden * 1e4, weight, topk_of(sure, teacher_weight, 3), weights)
    for each in (total, top, both):
        assert each.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(each, (hidden, weight)))


@pytest.mark.parametrize("with_gradient", [True, False])
def test_logits_of_the_whole_never_exist(with_gradient, memory):
    num_tokens, vocabulary, chunk = 400, 300, 16
    hidden, weight, *teacher, weights = make_inputs(torch.float32, T=num_tokens, V=vocabulary)

    def run():
        with torch.set_grad_enabled(with_gradient):
            total = chunked_kl(hidden, weight, *teacher, weights, chunk)
        if with_gradient:
            total.backward()

    taken = memory(run)
    assert taken.largest <= max(chunk * vocabulary, num_tokens * D_TEACHER, vocabulary * D)
    assert taken.peak < num_tokens * vocabulary / 2


def test_no_token_counts_and_no_empty_chunks():
    hidden, weight, *teacher, weights = make_inputs()
    total = chunked_kl(hidden, weight, *teacher, weights * 0)
    assert total.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(total, (hidden, weight)))
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        chunked_kl(hidden, weight, *teacher, weights, 0)
