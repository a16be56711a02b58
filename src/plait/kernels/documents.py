"""Where the sequences of a batch lie, and the index tensors that kernels derive from that.

Packed rows carry `cu_seqlens`; every kernel that must keep documents apart turns it into something
else (a chunk-aligned order for the scan, the windows at a document's edges for the convolution, a
list of bounds for attention). A model calls some dozens of kernels with the same documents, so a
`Documents` keeps each of these once made, and may be passed wherever a kernel asks for
`cu_seqlens`:

    documents = Documents(cu_seqlens)
    for layer in layers:
        ... causal_conv(x, weight, bias, cu_seqlens=documents) ...

`cu_seqlens` is read once, on whichever device it is; what is derived lies where the tokens do. An
unpacked batch of B rows is the same thing with documents of equal length, one per row.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

Derived = TypeVar("Derived")


class Documents:
    """The documents of a packed row, or the rows of a batch, and what kernels derived from them."""

    def __init__(self, cu_seqlens: Int[Tensor, " S_plus_1"]):
        """Read the bounds.

        Raises: ValueError if they do not start at 0 or ever decrease. Empty documents are allowed.
        """
        self.bounds: list[int] = cu_seqlens.tolist()
        self.spans: list[tuple[int, int]] = list(pairwise(self.bounds))
        if self.bounds[:1] != [0] or any(stop < start for start, stop in self.spans):
            raise ValueError(f"cu_seqlens is {self.bounds}; it must start at 0 and never decrease")
        self._derived: dict[tuple[Any, ...], Any] = {}

    @staticmethod
    def of(
        cu_seqlens: "Int[Tensor, ' S_plus_1'] | Documents | None", tokens: Tensor
    ) -> "Documents":
        """Return the documents of a tensor (B, T, ...): as given, or its rows.

        Raises: ValueError if packed documents come with B > 1 or do not end at T.
        """
        num_rows, num_tokens = tokens.shape[:2]
        if cu_seqlens is None:
            return _rows(num_rows, num_tokens)
        documents = cu_seqlens if isinstance(cu_seqlens, Documents) else Documents(cu_seqlens)
        if documents.bounds[-1] != num_tokens or num_rows != 1:
            raise ValueError(
                f"packed documents end at {documents.bounds[-1]}, but the tensor has {num_rows} "
                f"row(s) of {num_tokens} tokens; give one row of exactly the packed length"
            )
        return documents

    def __len__(self) -> int:
        return len(self.spans)

    def check_states(self, states: Tensor, *shape: int) -> None:
        """Check that there is one state of this shape per document: kernels read no others.

        Raises: ValueError if there is not.
        """
        if states.shape != (len(self), *shape):
            raise ValueError(
                f"{len(states)} initial states of shape {tuple(states.shape[1:])} for {len(self)} "
                f"sequences; each needs one of shape {shape}"
            )

    def derived(self, build: Callable[..., Derived], *arguments: Any) -> Derived:
        """Return `build(self, *arguments)`, computed at the first call only."""
        key = build, *arguments
        if key not in self._derived:
            self._derived[key] = build(self, *arguments)
        return self._derived[key]


@lru_cache(maxsize=8)
def _rows(num_rows: int, num_tokens: int) -> Documents:
    return Documents(torch.arange(num_rows + 1) * num_tokens)


def bounds_tensor(documents: Documents) -> Int[Tensor, " S_plus_1"]:
    """Return the bounds as int64 on the CPU: what native kernels read; for `derived`."""
    return torch.tensor(documents.bounds)
