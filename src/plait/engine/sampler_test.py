import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.engine.request import SamplingParams
from plait.engine.sampler import filtered_probabilities, sample
from plait.kernels import native


def reference(logits: list[float], params: SamplingParams) -> list[float]:
    """Filter one row in plain Python, in the order temperature, top_k, top_p, min_p."""
    top = max(logits)
    weights = [math.exp((value - top) / params.temperature) for value in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept = order[: params.top_k or None]
    total = sum(weights[i] for i in kept)
    nucleus, reached = [], 0.0
    for i in kept:
        if nucleus and reached >= params.top_p:
            break
        nucleus.append(i)
        reached += weights[i] / total
    floor = params.min_p * weights[order[0]]
    survivors = {i for i in nucleus if weights[i] >= floor}
    total = sum(weights[i] for i in survivors)
    return [weights[i] / total if i in survivors else 0.0 for i in range(len(weights))]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 50]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(PARAMS, min_size=1, max_size=5), st.integers(0, 1000))
def test_filters_equal_plain_reference(params, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(params), 23, generator=generator, dtype=torch.float64)
    got = filtered_probabilities(logits, params)
    got = got / got.sum(-1, keepdim=True)
    want = torch.tensor([reference(row.tolist(), p) for row, p in zip(logits, params, strict=True)])
    torch.testing.assert_close(got, want.double(), atol=1e-6, rtol=0)


def draw(logits, params, uniforms):
    return sample(logits, params, uniforms, [None] * len(params)).tokens


@settings(max_examples=60, deadline=None)
@given(PARAMS, st.integers(1, 3000), st.sampled_from([0.01, 1.0, 20.0]), st.integers(0, 1000))
def test_the_native_form_draws_what_the_torch_form_draws(params, size, spread, seed):
    """Spread 0.01 makes all tokens alike, 20 makes most of them impossible; some are banned."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(size, generator=generator)
    logits[torch.rand(size, generator=generator) < 0.1] = -torch.inf
    uniforms = torch.rand(20, generator=generator, dtype=torch.float64).tolist()
    got = draw(logits.expand(20, size), [params] * 20, uniforms)
    with native.off():
        want = draw(logits.expand(20, size), [params] * 20, uniforms)
    assert got == want


def test_frequencies_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    num = 4000
    uniforms = torch.rand(num, generator=torch.Generator().manual_seed(0)).tolist()
    tokens = draw(probabilities.log().expand(num, 4), [SamplingParams()] * num, uniforms)
    shares = torch.bincount(torch.tensor(tokens), minlength=4) / num
    torch.testing.assert_close(shares, probabilities, atol=0.03, rtol=0)
    assert shares[1] == 0


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.499, 1), (0.5, 3), (1 - 2**-53, 3)])
def test_ends_of_the_unit_interval_never_give_an_impossible_token(uniform, token):
    logits = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log().clamp(min=-1e30)
    assert draw(logits, [SamplingParams()], [uniform]) == [token]


def test_a_row_does_not_depend_on_its_neighbours():
    torch.manual_seed(1)
    params = [
        SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
        for temperature in (0, 0.7, 2.0)
        for top_p in (0.8, 1.0)
        for top_k in (0, 3)
        for min_p in (0.0, 0.2)
    ]
    logits = torch.randn(len(params), 31).bfloat16().float()
    uniforms = torch.rand(len(params)).tolist()
    together = draw(logits, params, uniforms)
    for row, each in enumerate(params):
        alone = draw(logits[row : row + 1], [each], [uniforms[row]])
        assert alone == [together[row]]


def ban(*ids):
    def edit(row):
        row[list(ids)] = -torch.inf

    return edit


def test_greedy_and_banned():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    greedy = SamplingParams(temperature=0)
    sampled = sample(logits, [greedy] * 2, [0.0, 0.0], [None, ban(1)])
    assert sampled.tokens == [1, 2]


def test_logprobs_are_of_the_raw_logits():
    logits = torch.randn(3, 11)
    params = SamplingParams(temperature=0.2, top_k=2, logprobs=True, top_logprobs=4)
    sampled = sample(logits, [params] * 3, [0.1, 0.5, 0.9], [ban(0, 1)] * 3)
    want = logits.log_softmax(-1)
    of_tokens = want[torch.arange(3), torch.tensor(sampled.tokens)]
    torch.testing.assert_close(torch.tensor(sampled.logprobs), of_tokens)
    for row, tops in enumerate(sampled.top_logprobs):
        values, ids = want[row].sort(descending=True)
        assert [top.token_id for top in tops] == ids[:4].tolist()
        torch.testing.assert_close(torch.tensor([top.logprob for top in tops]), values[:4])


def test_a_tiny_temperature_does_not_overflow():
    logits = torch.tensor([[100.0, 90.0, -100.0]])
    assert draw(logits, [SamplingParams(temperature=1e-30)], [0.99]) == [0]


def test_ids_beyond_the_vocabulary_are_never_chosen():
    logits = torch.tensor([[0.0, 1.0, 9.0]])
    assert sample(logits, [SamplingParams(temperature=0)], [0.0], [None], num_ids=2).tokens == [1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_give_no_token_in_their_row_only(bad, temperature):
    logits = torch.tensor([[0.0, bad, 1.0], [0.0, 1.0, 2.0]])
    tokens = draw(logits, [SamplingParams(temperature=temperature)] * 2, [0.5, 0.99])
    assert tokens == [None, 2]


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_p=0.5, top_k=2)])
@pytest.mark.parametrize("form", [nullcontext, native.off])
def test_nothing_allowed_gives_no_token(params, form):
    with form():
        assert sample(torch.zeros(1, 3), [params], [0.5], [ban(0, 1, 2)]).tokens == [None]
