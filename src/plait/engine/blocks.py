"""Who owns the blocks of keys and values: pure bookkeeping over their numbers.

A block belongs to every request and stored state that holds a reference to it, and is free when
none is left. Number NULL_BLOCK is never handed out.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from plait.model.state import NULL_BLOCK


class BlockPool:
    """`num_blocks` blocks, counted from NULL_BLOCK + 1."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        first = NULL_BLOCK + 1
        self._free = list(range(num_blocks + first - 1, first - 1, -1))
        self._num_owners: Counter[int] = Counter()

    @property
    def num_free(self) -> int:
        """Blocks without an owner."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Return `count` free blocks, now owned once; the caller has looked at `num_free`."""
        blocks = [self._free.pop() for _ in range(count)]
        self.share(blocks)
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Add an owner to each block."""
        for block in blocks:
            self._num_owners[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take an owner from each block; those without one become free."""
        for block in blocks:
            self._num_owners[block] -= 1
            if not self._num_owners[block]:
                del self._num_owners[block]
                self._free.append(block)

    def check(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless `owners`, lists of blocks, are exactly who owns what; for
        tests."""
        held: Counter[int] = Counter()
        for blocks in owners:
            assert len(set(blocks)) == len(blocks), "a block twice in one list"
            held.update(blocks)
        assert held == self._num_owners, "owners and counts differ"
        assert NULL_BLOCK not in held
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert not set(self._free) & set(held), "an owned block is free"
        assert len(self._free) + len(held) == self.num_blocks, "blocks are lost"
