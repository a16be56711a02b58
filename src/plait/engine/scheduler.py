"""Which request sits in which row of the state, and what is fed next.

Rows are dense: running requests hold rows 0 .. n - 1, those that decode first, then at most one
whose prompt is only partly read. A finished row is filled at once, by moving the last one into it,
so that a decode step is one forward over rows 0 .. k - 1. Waiting requests enter behind, as many
prompts in one forward as fit in `prefill_chunk_tokens`; a long prompt takes several steps, between
which the others go on decoding.

Pure bookkeeping: no tensors, no model.
"""

from collections import deque
from typing import NamedTuple

from plait.engine.generation import Generation


class Prefill(NamedTuple):
    """Prompts, or parts of them, to read in one forward into rows first_row, first_row + 1, ..."""

    first_row: int
    generations: list[Generation]
    counts: list[int]
    """Tokens of each."""
    num_continued: int
    """How many of them, at the front, have read a part before; the rows of the others are new."""


class Move(NamedTuple):
    """A row of the state to copy over another."""

    source: int
    target: int


class Scheduler:
    """The waiting line and the rows."""

    def __init__(self, num_rows: int, prefill_chunk_tokens: int) -> None:
        self.num_rows = num_rows
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        """By row."""
        self.num_decoding = 0

    @property
    def has_work(self) -> bool:
        """True while any request waits or runs."""
        return bool(self.waiting or self.running)

    @property
    def decoding(self) -> list[Generation]:
        """Requests whose prompt is read, by row."""
        return self.running[: self.num_decoding]

    def submit(self, generation: Generation) -> None:
        """Put a request at the end of the line."""
        self.waiting.append(generation)

    def admit(self) -> Prefill | None:
        """Give free rows to waiting requests, first come first served, and say what to read now."""
        left = self.prefill_chunk_tokens
        first_row = self.num_decoding
        num_continued = len(self.running) - first_row
        counts = []
        row = first_row
        while left and (row < len(self.running) or self._seat_next()):
            counts.append(min(left, self.running[row].num_pending))
            left -= counts[-1]
            row += 1
        if not counts:
            return None
        return Prefill(first_row, self.running[first_row:row], counts, num_continued)

    def mark_read(self) -> None:
        """Note that a prefill was fed: requests with nothing left to read decode from now on."""
        while self.num_decoding < len(self.running):
            if self.running[self.num_decoding].num_pending:
                break
            self.num_decoding += 1

    def retire(self) -> list[Move]:
        """Take finished requests out and close the gaps; the moves must be made in this order."""
        moves = []
        self.waiting = deque(each for each in self.waiting if not each.is_over)
        while len(self.running) > self.num_decoding and self.running[-1].is_over:
            self.running.pop()
        for row in reversed(range(self.num_decoding)):
            if not self.running[row].is_over:
                continue
            last = self.num_decoding - 1
            if row != last:
                moves.append(self._move(last, row))
            if len(self.running) > self.num_decoding:
                moves.append(self._move(self.num_decoding, last))
            self.running.pop()
            self.num_decoding -= 1
        return moves

    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold; for tests."""
        assert 0 <= self.num_decoding <= len(self.running) <= self.num_rows
        assert len(self.running) - self.num_decoding <= 1
        assert len({id(each) for each in self.running}) == len(self.running)
        assert not any(each.is_over for each in self.running)
        assert all(each.num_fed for each in self.running)

    def _seat_next(self) -> bool:
        if not self.waiting or len(self.running) == self.num_rows:
            return False
        self.running.append(self.waiting.popleft())
        return True

    def _move(self, source: int, target: int) -> Move:
        self.running[target] = self.running[source]
        return Move(source, target)
