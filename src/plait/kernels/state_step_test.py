import pytest
import torch

from plait.kernels.ssd_naive import ssd_scan_naive
from plait.kernels.state_step import ssd_step
from plait.kernels.tolerances import assert_close


def make_inputs(dtype, rows=3, H=6, P=80, G=2, N=12):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    wide = torch.promote_types(dtype, torch.float32)
    return [
        normal(rows, H, P),
        normal(rows, H).to(wide).abs(),
        -normal(H).to(wide).abs(),
        normal(rows, G, N),
        normal(rows, G, N),
        normal(H),
        normal(rows, H, P, N).to(wide),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_is_one_token_of_the_recurrence(dtype):
    x, dt, A, B, C, D, state = make_inputs(dtype)
    wide = [t.double() for t in (x[:, None], dt[:, None], A, B[:, None], C[:, None], D)]
    want = ssd_scan_naive(*wide, initial_state=state.double())
    y = ssd_step(x, dt, A, B, C, D, state)
    assert y.dtype == dtype
    assert_close("ssd_step", dtype, "y", y, want.y[:, 0])
    exact = dtype if dtype == torch.float64 else torch.float32
    assert_close("ssd_step", exact, "state", state, want.final_state)


def test_a_short_state_is_rounded_once():
    x, dt, A, B, C, D, state = make_inputs(torch.float32)
    short = state.bfloat16()
    wide = short.float()
    got = ssd_step(x, dt, A, B, C, D, short)
    want = ssd_step(x, dt, A, B, C, D, wide)
    assert torch.equal(got, want)
    assert torch.equal(short, wide.bfloat16())


def test_rows_of_a_larger_state_are_advanced_in_place():
    x, dt, A, B, C, D, state = make_inputs(torch.float32)
    whole = torch.zeros(7, *state.shape[1:])
    whole[2:5] = state
    ssd_step(x, dt, A, B, C, D, whole[2:5])
    ssd_step(x, dt, A, B, C, D, state)
    assert torch.equal(whole[2:5], state)
    assert not whole[:2].any()
    assert not whole[5:].any()


def test_heads_must_divide_into_groups():
    x, dt, A, B, C, D, state = make_inputs(torch.float32, H=5, G=2)
    with pytest.raises(ValueError, match="5 heads are no multiple of 2 groups"):
        ssd_step(x, dt, A, B, C, D, state)
