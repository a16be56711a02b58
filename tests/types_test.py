"""While tests run, plait's functions are called with the types and shapes that they name."""

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from plait.core.sizes import format_bytes
from plait.kernels.conv import causal_conv


def as_imported(function):
    """Decorate a function as the import hook does."""
    return jaxtyping.jaxtyped(typechecker=beartype)(function)


@as_imported
def first(
    rows: Float[Tensor, "N D"], length: int, scale: Float[Tensor, "N 1"] | None = None
) -> Float[Tensor, "N {length}"]:
    return rows[:, :3]


@as_imported
def of_both(one: "Float[Tensor, 'N D']", other: "Float[Tensor, 'N D']") -> "int":
    return len(one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: format_bytes("1"), "int"),
        (lambda: causal_conv(torch.ones(1, 3, 4), torch.ones(5, 2), None), "Ch"),
        (lambda: first(torch.ones(2, 4), 3, torch.ones(3, 1)), "N"),
        (lambda: first(torch.ones(2, 4), 4), "length"),
        (lambda: first(torch.ones(2, 4).int(), 3), "dtype"),
        (lambda: of_both(torch.ones(2, 1), torch.ones(3, 1)), "N"),
    ],
    ids=["type", "axis", "axis in a union", "axis of what is returned", "dtype", "in quotes"],
)
def test_what_a_signature_does_not_allow_is_noticed(call, message):
    with pytest.raises(Exception, match=message) as raised:
        call()
    assert type(raised.value).__module__.startswith(("beartype", "jaxtyping"))


def test_what_it_allows_is_let_through():
    assert first(torch.ones(2, 4), 3, torch.ones(2, 1)).shape == (2, 3)
    assert of_both(torch.ones(2, 1), torch.ones(2, 1)) == 2
