import inspect
import itertools

import pytest
import torch
from torch.nn import functional as F

from plait.kernels import conv, native
from plait.kernels.conv import causal_conv, conv_step
from plait.kernels.tolerances import assert_close

NAMES = ("x", "weight", "bias", "initial_state")
# documents of one token, none, fewer than W, W and many
PACKED = [0, 1, 1, 3, 7, 40, 103]


def naive(x, weight, bias, *, initial_state, cu_seqlens=None):
    """Document by document and token by token, straight from the definition."""
    if cu_seqlens is None:
        spans = [(row, 0, x.shape[1]) for row in range(len(x))]
    else:
        bounds = cu_seqlens.tolist()
        spans = [(0, i, j) for i, j in itertools.pairwise(bounds)]
    outputs, states = [], []
    for (row, start, stop), state in zip(spans, initial_state, strict=True):
        seen = torch.cat([state.t(), x[row, start:stop]])
        for t in range(stop - start):
            outputs.append(F.silu((seen[t : t + weight.shape[1]] * weight.t()).sum(0) + bias))
        states.append(seen[stop - start :].t())
    return torch.stack(outputs).view(x.shape), torch.stack(states)


def make_inputs(T, *, rows=1, sequences=None, channels=6, taps=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (rows, T, channels),
        (channels, taps),
        (channels,),
        (sequences or rows, channels, taps - 1),
    )
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [t.requires_grad_() for t in tensors]


def with_gradients(function, inputs, cu_seqlens=None):
    x, weight, bias, state = inputs
    out = function(x, weight, bias, initial_state=state, cu_seqlens=cu_seqlens)
    generator = torch.Generator().manual_seed(1)
    # exact in every dtype, so that no reference sees other gradients
    grads = [torch.randint(-8, 9, o.shape, generator=generator).to(o.dtype) / 8 for o in out]
    return [*out, *torch.autograd.grad(out, inputs, grads)]


CASES = {
    "1": ({"T": 1}, None),
    "63": ({"T": 63, "rows": 2}, None),
    "257": ({"T": 257}, None),
    "packed": ({"T": PACKED[-1], "sequences": len(PACKED) - 1}, PACKED),
    "two taps": ({"T": PACKED[-1], "sequences": len(PACKED) - 1, "taps": 2}, PACKED),
}


@pytest.mark.parametrize("block_elements", [1, 150, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_definition(case, dtype, block_elements, monkeypatch):
    monkeypatch.setattr(conv, "_BLOCK_ELEMENTS", block_elements)
    with native.off():
        _check(case, dtype)


@pytest.mark.parametrize("channels", [1, 16, 63])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_the_native_form_agrees_with_the_definition(case, dtype, channels):
    _check(case, dtype, channels=channels)


def _check(case, dtype, **more):
    shape, bounds = CASES[case]
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    inputs = make_inputs(**shape, **more, dtype=dtype)
    got = with_gradients(causal_conv, inputs, cu_seqlens)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    want = with_gradients(naive, wide, cu_seqlens)
    for name, g, w in zip(("y", "final_state", *NAMES), got, want, strict=True):
        assert g.dtype == dtype
        assert_close("causal_conv", dtype, f"{case}: {name}", g, w)


def test_gradcheck():
    inputs = make_inputs(5, sequences=2, channels=2)
    bounds = torch.tensor([0, 1, 5])

    def run(x, weight, bias, state):
        return tuple(causal_conv(x, weight, bias, initial_state=state, cu_seqlens=bounds))

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype):
    inputs = make_inputs(PACKED[-1], sequences=len(PACKED) - 1, channels=50, dtype=dtype)
    want = with_gradients(causal_conv, inputs, torch.tensor(PACKED))
    torch.set_num_threads(3)
    got = with_gradients(causal_conv, inputs, torch.tensor(PACKED))
    for name, g, w in zip(("y", "final_state", *NAMES), got, want, strict=True):
        assert torch.equal(g, w), name


def test_without_bias_or_state_both_are_zero():
    x, weight, _, _ = make_inputs(9, rows=2)
    got = causal_conv(x, weight, None)
    want = naive(x, weight, torch.zeros(6), initial_state=torch.zeros(2, 6, 3))
    assert_close("causal_conv", torch.float64, "y", got.y, want[0])
    assert_close("causal_conv", torch.float64, "final_state", got.final_state, want[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_last_token_of_a_document_reaches_nothing_outside(dtype):
    inputs = make_inputs(PACKED[-1], sequences=len(PACKED) - 1, dtype=dtype)
    changed = [t.detach().clone() for t in inputs]
    changed[0][0, PACKED[5] - 1] += 1
    changed = [t.requires_grad_() for t in changed]
    bounds = torch.tensor(PACKED)
    before, after = (with_gradients(causal_conv, i, bounds) for i in (inputs, changed))
    outside = torch.ones(PACKED[-1], dtype=torch.bool)
    outside[PACKED[4] : PACKED[5]] = False
    others = torch.arange(len(PACKED) - 1) != 4
    for index in (0, 2):
        assert torch.equal(before[index][:, outside], after[index][:, outside])
        assert not torch.equal(before[index], after[index])
    for index in (1, 5):
        assert torch.equal(before[index][others], after[index][others])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_steps_continue_where_the_whole_ended(dtype, with_bias):
    x, weight, bias, state = (t.detach() for t in make_inputs(11, rows=3, dtype=dtype))
    bias = bias if with_bias else None
    whole = causal_conv(x, weight, bias, initial_state=state)
    state = causal_conv(x[:, :7], weight, bias, initial_state=state).final_state.clone()
    steps = [conv_step(x[:, t], state, weight, bias) for t in range(7, 11)]
    assert steps[0].dtype == dtype
    assert_close("causal_conv", dtype, "steps", torch.stack(steps, 1), whole.y[:, 7:])
    assert torch.equal(state, whole.final_state)


def test_each_sequence_needs_its_initial_state():
    x, weight, bias, state = make_inputs(6, sequences=3)
    with pytest.raises(ValueError, match=r"3 initial states .* for 2 sequences"):
        causal_conv(x, weight, bias, initial_state=state, cu_seqlens=torch.tensor([0, 2, 6]))


@pytest.mark.parametrize("shape", [(1, 5, 3), (1, 7, 3), (1, 6, 2), (1, 6, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_initial_states_of_another_shape_are_refused(dtype, shape):
    x, weight, bias, _ = make_inputs(9, dtype=dtype)
    # without the checks of types that only tests have
    unchecked = inspect.unwrap(causal_conv)
    with pytest.raises(ValueError, match=r"for 1 sequences; each needs one of shape \(6, 3\)"):
        unchecked(x, weight, bias, initial_state=torch.zeros(shape, dtype=dtype))


def test_memory_is_linear_in_tokens(memory):
    def peak(T):
        inputs = make_inputs(T, channels=8, dtype=torch.float32)
        bounds = torch.arange(0, T + 1, 32)
        x, weight, bias, _ = inputs
        return memory(
            lambda: causal_conv(x, weight, bias, cu_seqlens=bounds).y.sum().backward()
        ).peak

    assert peak(2048) < 2.2 * peak(1024)
