"""Many items through calls that take long: some at once, in order, each one accounted for.

A generator hands `run` its items and a coroutine that makes samples of one. Items are read as they
are needed, worked on side by side, and their samples written in the order of the items, so that
the output does not depend on which answer came first. An item either yields samples or is dropped
for a named reason; `funnel.json` holds the sums, which must add up.

Nothing of this is kept when a run is killed. It need not be: every answer is in the store
(`replies`), so the same items take the same ways again, without a call, up to where the run ended.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sized
from typing import Any, Protocol, TypeVar, runtime_checkable

from plait.core.endpoint import EndpointSettings
from plait.core.errors import DataError
from plait.core.progress import Progress
from plait.synth.client import Unusable
from plait.synth.replies import ReplyStore
from plait.synth.role import Role
from plait.synth.sample import Sample, SampleWriter


@runtime_checkable
class Identified(Protocol):
    """An item: whatever a generator works on, as long as it has a name."""

    @property
    def id(self) -> str:
        """Return what names the item in the record of drops."""
        ...


Item = TypeVar("Item", bound=Identified)
Result = TypeVar("Result")

ITEMS_PER_CALL = 8
"""Items at work for each call that may be in flight: enough that a slow one holds up no other."""


@runtime_checkable
class Guessed(Protocol):
    """Items whose number is not known before they are all read, but can be guessed."""

    def expected(self) -> float | None:
        """Return about how many there will be; None if nobody can say."""
        ...


class Tally:
    """What became of the items of one step."""

    def __init__(self) -> None:
        self.items_in = self.items_kept = 0
        self.dropped: Counter[str] = Counter()

    def table(self, step: str) -> dict[str, Any]:
        """Return the counts. Raises: DataError if they do not add up."""
        if self.items_in != self.items_kept + self.dropped.total():
            raise DataError(
                f"step {step!r}: {self.items_in} items went in, but {self.items_kept} kept and "
                f"{self.dropped.total()} dropped came out"
            )
        return {
            "items_in": self.items_in,
            "items_kept": self.items_kept,
            "dropped": dict(self.dropped.most_common()),
        }


class Pipeline:
    """The roles of a run, where its samples go, and the account of its steps."""

    def __init__(self, roles: Mapping[str, Role], store: ReplyStore, writer: SampleWriter) -> None:
        self.roles, self.writer = roles, writer
        self.parts: Counter[str] = Counter()
        """Parts of items that were left out, by reason: one of eight pairs, one of two lines."""
        self._store = store
        self._tallies: dict[str, Tally] = {}
        self._window = ITEMS_PER_CALL * max(r.client.settings.max_in_flight for r in roles.values())

    async def run(
        self,
        step: str,
        items: Iterable[Item],
        work: Callable[[Item], Awaitable[list[Sample]]],
    ) -> None:
        """Write the samples that `work` makes of each item."""
        async for _, samples in self.each(step, items, work):
            for sample in samples:
                self.writer.add(sample)

    async def each(
        self, step: str, items: Iterable[Item], work: Callable[[Item], Awaitable[Result]]
    ) -> AsyncIterator[tuple[Item, Result]]:
        """Yield items with what `work` made of them, in order; those that it drops are counted.

        `work` raises Unusable to drop its item; anything else that it raises ends the run.
        """
        tally = self.open(step)
        total = len(items) if isinstance(items, Sized) else None
        answered_before = self._store.calls.total()
        waiting: deque[tuple[Item, asyncio.Task[Result]]] = deque()
        with Progress(f"synth {step}", total, "items") as progress:
            try:
                async for item, task in _window(items, work, waiting, self._window):
                    tally.items_in += 1
                    try:
                        result = await task
                    except Unusable as failure:
                        self._drop(tally, step, item, failure)
                    else:
                        tally.items_kept += 1
                        yield item, result
                    if isinstance(items, Guessed):
                        progress.total = items.expected()
                    is_new = self._store.calls.total() > answered_before
                    if not is_new:  # answered in an earlier run: says nothing of the pace
                        progress.resume(progress.done + 1)
                    progress.advance(int(is_new), self._cost())
            finally:
                for _, task in waiting:
                    task.cancel()
                await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)

    def open(self, step: str) -> Tally:
        """Return the account of a step; steps stand in the order in which they are opened."""
        return self._tallies.setdefault(step, Tally())

    def account(self, step: str, item: Identified, reason: str | None = None) -> None:
        """Count an item that went in as kept, or as dropped for a reason."""
        tally = self.open(step)
        tally.items_in += 1
        if reason is None:
            tally.items_kept += 1
        else:
            self._drop(tally, step, item, Unusable(reason))

    def drop(self, step: str, item: Identified, reason: str) -> None:
        """Drop an item that a step kept, for what it is beside others: a duplicate."""
        tally = self._tallies[step]
        tally.items_kept -= 1
        self._drop(tally, step, item, Unusable(reason))

    def table(self) -> dict[str, Any]:
        """Return the account of everything. Raises: DataError if it does not add up."""
        store = self._store
        return {
            "steps": {step: tally.table(step) for step, tally in self._tallies.items()},
            "parts_dropped": dict(self.parts.most_common()),
            "documents": self.writer.num_documents,
            "conversations": self.writer.num_conversations,
            "bytes": self.writer.num_bytes,
            "calls": dict(store.calls),
            "prompt_tokens": store.prompt_tokens.total(),
            "answer_tokens": store.answer_tokens.total(),
            "cost": round(self.cost, 6),
        }

    @property
    def cost(self) -> float:
        """Return what all calls have cost, by the prices of the endpoints' settings."""
        return sum(self._cost_of(name, role.client.settings) for name, role in self.roles.items())

    def _cost_of(self, role: str, settings: EndpointSettings) -> float:
        read, written = self._store.prompt_tokens[role], self._store.answer_tokens[role]
        return (read * settings.prompt_price + written * settings.answer_price) / 1e6

    def _cost(self) -> str:
        read, written = self._store.prompt_tokens.total(), self._store.answer_tokens.total()
        price = f", cost {self.cost:,.2f}" if self.cost else ""
        return f"{read:,} tokens read, {written:,} written{price}"

    def _drop(self, tally: Tally, step: str, item: Identified, failure: Unusable) -> None:
        tally.dropped[failure.reason] += 1
        self.writer.drop(step, item.id, failure.reason, failure.detail)


async def together(tasks: Iterable[Awaitable[Result]]) -> list[Result]:
    """Return the results of parts of one item, done side by side.

    Raises: what the first part that fails raises, once all have ended.
    """
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # pyright: ignore[reportReturnType]


async def _window(
    items: Iterable[Item],
    work: Callable[[Item], Awaitable[Result]],
    waiting: deque[tuple[Item, asyncio.Task[Result]]],
    size: int,
) -> AsyncIterator[tuple[Item, asyncio.Task[Result]]]:
    """Yield the tasks of items in order, keeping `size` of them running."""
    for item in items:
        waiting.append((item, asyncio.ensure_future(work(item))))
        if len(waiting) == size:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
