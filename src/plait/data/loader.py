"""Token batches for training: what a batch is and who gives batches.

A packed batch is one row in which documents stand one after another; `cu_seqlens` says where each
one begins, and no layer of the model looks across such a boundary.
"""

from typing import Any, NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor


class PackedBatch(NamedTuple):
    """One packed row. `weights` is 0 where nothing is learnt; there `targets` has no meaning."""

    tokens: Int[Tensor, "1 T"]
    targets: Int[Tensor, "1 T"]
    weights: Float[Tensor, "1 T"]
    cu_seqlens: Int[Tensor, " S+1"]


class BatchSource(Protocol):
    """Gives batches forever or until StopIteration, and can be put back to any earlier place."""

    def __next__(self) -> PackedBatch:
        """Return the next batch."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave."""
        ...
