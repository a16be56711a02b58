"""Which request sits in which row of the state, which blocks it owns, and what is fed next.

Two things are short: rows, one per running request, and blocks of keys and values. A request is
let in, first come first served, when a row is free and the blocks for all that it has to read are.
While it decodes it takes a block now and then; if none is left, stored prefixes are given up,
oldest use first, then running requests, newest first: such a one loses row and blocks, goes back to
the head of the line and later reads its prompt and its own output again. Sampled tokens and random
numbers are kept, so the text is the same.

Rows are dense: requests that decode hold rows 0 .. k - 1, those that still read follow. So a
decode step is one forward over a range of rows, and reading another. A long prompt is read in
pieces, between which the others go on decoding; pieces end on whole blocks, and at the places where
a prefix is worth storing.

Pure bookkeeping: no tensors, no model. Rows are moved by a `Rows`, which the runner is.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from plait.engine.blocks import BlockPool
from plait.engine.generation import Generation
from plait.engine.prefix import PrefixCache, hash_chain, useful_places
from plait.model.state import BLOCK_TOKENS

_SCORED_TOKENS = 256
"""Most tokens of a piece whose every position is scored: logits of all are held at once."""


@runtime_checkable
class Rows(Protocol):
    """The rows of a state, as far as the scheduler orders them about."""

    def start(self, row: int, slot: int | None) -> None:
        """Make a row new, or the stored state `slot`."""

    def assign(self, row: int, start: int, blocks: Sequence[int], *, are_new: bool = True) -> None:
        """Let `blocks` be blocks start, start + 1, ... of a row."""

    def swap(self, first: int, second: int) -> None:
        """Exchange two rows."""

    def store(self, row: int, slot: int) -> None:
        """Copy the state of a row into a slot."""


class Prefill(NamedTuple):
    """Prompts, or parts of them, to read in one forward into rows first_row, first_row + 1, ..."""

    first_row: int
    generations: list[Generation]
    counts: list[int]
    """Tokens of each."""


class Job:
    """A request and what it owns besides its row."""

    def __init__(self, generation: Generation, order: int, *, is_stored: bool) -> None:
        self.generation = generation
        self.order = order
        """Counts submitted requests."""
        self.blocks: list[int] = []
        self.chain = hash_chain(generation.prompt_ids) if is_stored else []
        """Hashes of the prompt, one per whole block; none if prefixes are not to be reused."""
        self.places: list[int] = []
        """Token counts at which the state is to be stored, those ahead, ascending."""
        self.was_seated = False
        self.num_seen: int | None = None
        """Tokens of the prompt that earlier prompts had too; None until it was first in line."""

    @property
    def next_key(self) -> bytes | None:
        """Hash of the prefix that is stored next."""
        return self.chain[self.places[0] // BLOCK_TOKENS - 1] if self.places else None


class Scheduler:
    """The waiting line, the rows and the blocks."""

    def __init__(
        self, rows: Rows, num_rows: int, blocks: BlockPool, prefix: PrefixCache, chunk_tokens: int
    ) -> None:
        self.num_rows = num_rows
        self.chunk_tokens = -(-chunk_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        """Prompt tokens read in a step: whole blocks."""
        self.blocks, self.prefix = blocks, prefix
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        """By row."""
        self.num_decoding = 0
        self.num_preemptions = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self._rows = rows
        self._num_submitted = 0

    @property
    def has_work(self) -> bool:
        """True while any request waits or runs."""
        return bool(self.waiting or self.running)

    def submit(self, generation: Generation) -> None:
        """Put a request at the end of the line."""
        is_stored = self.prefix.num_slots > 0 and not generation.params.prompt_logprobs
        self.waiting.append(Job(generation, self._num_submitted, is_stored=is_stored))
        self._num_submitted += 1

    def decode(self) -> tuple[list[Generation], int]:
        """Return the requests whose prompt is read, by row, and how many tokens each is fed now.

        That is usually 1; more when every row has forced tokens to read, as a lone request has.
        """
        decoding = self.running[: self.num_decoding]
        width = min((job.generation.num_pending for job in decoding), default=0)
        row = 0
        while row < self.num_decoding:
            if self._grow(row, self.running[row].generation.num_fed + width):
                row += 1
            else:
                self._preempt()
                row = 0
        return [job.generation for job in self.running[: self.num_decoding]], width

    def prefill(self, budget: int) -> Prefill | None:
        """Let waiting requests in and return what to read now, `budget` tokens at most."""
        counts: list[int] = []
        num_scorable = _SCORED_TOKENS
        row = self.num_decoding
        while row < len(self.running) or self._seat_next():
            left, job = budget - sum(counts), self.running[row]
            if job.generation.params.prompt_logprobs:
                left = min(left, num_scorable)
            count = self._piece(job, left)
            if not count:
                break
            if job.generation.params.prompt_logprobs:
                num_scorable -= count
            counts.append(count)
            row += 1
        if not counts:
            return None
        first = self.num_decoding
        return Prefill(first, [job.generation for job in self.running[first:row]], counts)

    def mark_read(self) -> None:
        """After a prefill was fed: store states; what has nothing left to read decodes from now."""
        for row in range(self.num_decoding, len(self.running)):
            self._store_state(row)
            if not self.running[row].generation.num_pending:
                self._swap(row, self.num_decoding)
                self.num_decoding += 1

    def forget_waiting(self, generation: Generation) -> None:
        """Take a request out of the line if it waits there."""
        self.waiting = deque(job for job in self.waiting if job.generation is not generation)

    def retire(self) -> None:
        """Take running requests out that are over, and free what they held."""
        for row in reversed(range(len(self.running))):
            if self.running[row].generation.is_over:
                self._vacate(row)

    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold; for tests."""
        jobs = [*self.running, *self.waiting]
        assert 0 <= self.num_decoding <= len(self.running) <= self.num_rows
        assert len({id(job.generation) for job in jobs}) == len(jobs)
        assert not any(job.generation.is_over for job in jobs)
        assert not any(job.generation.num_fed or job.blocks for job in self.waiting)
        for job in self.running:
            assert len(job.blocks) * BLOCK_TOKENS >= job.generation.num_fed
            assert job.generation.num_pending > 0
        self.blocks.check([*(job.blocks for job in self.running), *self.prefix.block_owners()])
        self.prefix.check()

    def _piece(self, job: Job, budget: int) -> int:
        """Return how many tokens a row reads next: up to a place to store, else whole blocks."""
        generation = job.generation
        end = generation.num_fed + min(budget, generation.num_pending)
        if job.places and job.places[0] <= end:
            end = job.places[0]
        elif end < generation.num_fed + generation.num_pending:
            end = end // BLOCK_TOKENS * BLOCK_TOKENS
        return max(end - generation.num_fed, 0)

    def _seat_next(self) -> bool:
        """Give the first in line a row and its blocks, if there are."""
        if not self.waiting or len(self.running) == self.num_rows:
            return False
        job = self.waiting[0]
        stored = self.prefix.find(job.chain)
        num_stored = stored.num_tokens if stored else 0
        job.places = self._places(job, num_stored)
        in_progress = {each.next_key for each in self.running[self.num_decoding :]}
        if job.places and job.next_key in in_progress:
            return False  # a state it can go on from is being made: wait for that
        shared = stored.blocks if stored else []
        self.blocks.share(shared)  # so that making room does not take them
        need = _num_blocks(job.generation.num_pending) - len(shared)
        if not self._make_room(need + len(self.running), held=shared):
            self.blocks.release(shared)
            return False
        job.blocks = [*shared, *self.blocks.take(need)]
        row = len(self.running)
        self.running.append(self.waiting.popleft())
        self._rows.start(row, stored.slot if stored else None)
        self._rows.assign(row, 0, shared, are_new=False)
        self._rows.assign(row, len(shared), job.blocks[len(shared) :])
        job.generation.num_fed = num_stored
        if not job.was_seated:
            self._count(job)
        return True

    def _count(self, job: Job) -> None:
        job.was_seated = True
        job.generation.num_cached_tokens = job.generation.num_fed
        if job.chain:
            self.prefix_query_tokens += len(job.generation.prompt_ids)
            self.prefix_hit_tokens += job.generation.num_fed

    def _places(self, job: Job, num_stored: int) -> list[int]:
        """Return where to store the state of a prompt of which `num_stored` tokens are known."""
        if not job.chain:
            return []
        if job.num_seen is None:
            job.num_seen = self.prefix.mark_seen(job.chain)
        places = useful_places(job.generation.special_positions)
        before = [place for place in (0, num_stored, *places) if place <= job.num_seen]
        # A block more than elsewhere, such as the header of a turn needs, is not worth a state.
        if job.num_seen - max(before) > BLOCK_TOKENS:
            places = sorted([*places, job.num_seen])
        return [place for place in places if place > num_stored]

    def _grow(self, row: int, num_tokens: int) -> bool:
        """Give a row the blocks for `num_tokens` tokens; False if there are none."""
        job = self.running[row]
        need = _num_blocks(num_tokens) - len(job.blocks)
        if need <= 0:
            return True
        if not self._make_room(need):
            return False
        new = self.blocks.take(need)
        self._rows.assign(row, len(job.blocks), new)
        job.blocks += new
        return True

    def _make_room(self, count: int, held: Sequence[int] = ()) -> bool:
        """Give up stored prefixes until `count` blocks are free, or none if that is not enough.

        held: blocks of stored prefixes that must stay.
        """
        if self.blocks.num_free >= count:
            return True
        in_use = {*held, *(block for job in self.running for block in job.blocks)}
        if self.blocks.num_blocks - len(in_use) < count:
            return False
        while self.blocks.num_free < count:
            self.prefix.drop_oldest()
        return True

    def _preempt(self) -> None:
        """Send the newest request back to the head of the line."""
        job = max(self.running, key=lambda job: job.order)
        self._vacate(self.running.index(job))
        job.generation.num_fed = 0
        self.waiting.appendleft(job)
        self.num_preemptions += 1

    def _vacate(self, row: int) -> None:
        """Free a row and its blocks, and close the gap."""
        job = self.running[row]
        self.blocks.release(job.blocks)
        job.blocks = []
        if row < self.num_decoding:
            self.num_decoding -= 1
            self._swap(row, self.num_decoding)
            row = self.num_decoding
        self._swap(row, len(self.running) - 1)
        self.running.pop()

    def _swap(self, first: int, second: int) -> None:
        if first != second:
            running = self.running
            running[first], running[second] = running[second], running[first]
            self._rows.swap(first, second)

    def _store_state(self, row: int) -> None:
        job = self.running[row]
        if not job.places or job.generation.num_fed < job.places[0]:
            return
        num_blocks = job.places[0] // BLOCK_TOKENS
        slot = self.prefix.store(job.chain[num_blocks - 1], job.blocks[:num_blocks])
        job.places.pop(0)
        if slot is not None:
            self._rows.store(row, slot)


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)
