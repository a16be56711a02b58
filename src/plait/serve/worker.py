"""The thread that owns the engine, and what asyncio holds of its requests.

One thread submits, steps and cancels; nothing else touches the engine. It hands new text to the
event loop once per step, for all requests together. A request that nobody waits for any more is
cancelled, and its slot is free at the next step. An exception ends the requests it concerns and
never the thread.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from plait.core.errors import PlaitError, RequestError
from plait.engine.engine import Engine
from plait.engine.handle import Handle
from plait.engine.request import Delta, EngineStats, SamplingParams
from plait.serve.metrics import Metrics

log = logging.getLogger("plait.serve")


class BusyError(PlaitError):
    """The queue is full: the same request may succeed later."""


class ServerError(PlaitError):
    """A request failed for no fault of the client's."""


class _CancelledError(PlaitError):
    """What an answer gets that was given back before its end."""


class Update(NamedTuple):
    """A piece of an output and how many tokens of it were spent on the trace so far."""

    delta: Delta
    num_reasoning_tokens: int


class Ask(NamedTuple):
    """One prompt, and the parameters of each answer that is wanted to it."""

    prompt_ids: Sequence[int]
    params: Sequence[SamplingParams]


class Ticket:
    """One answer that was asked for, in the worker's thread."""

    def __init__(
        self, answers: "Answers", prompt_number: int, handle: Handle, started: float
    ) -> None:
        self.answers = answers
        self.prompt_number = prompt_number
        self.index = len(answers.tickets)
        self.handle = handle
        self.timer = Metrics.Timer(started)


class Answers:
    """All answers that one HTTP request asked for, on the side of the event loop."""

    def __init__(self, worker: "Worker", *, streams: bool) -> None:
        self.tickets: list[Ticket] = []
        self.streams = streams
        """False: only the ends are wanted."""
        self._worker = worker
        self._arrived: asyncio.Queue[tuple[int, Update | PlaitError]] = asyncio.Queue()

    async def updates(self) -> AsyncIterator[tuple[int, Update]]:
        """Yield (index of the answer, piece) as they come; each answer's last piece carries its
        completion.

        Raises: the first error of any of them.
        """
        missing = len(self.tickets)
        while missing:
            index, update = await self._arrived.get()
            if isinstance(update, PlaitError):
                raise update
            missing -= update.delta.completion is not None
            yield index, update

    async def last_updates(self) -> list[Update]:
        """Return the last piece of each answer; without streaming it is the whole answer.

        Raises: the first error of any of them.
        """
        last: dict[int, Update] = {}
        async for index, update in self.updates():
            last[index] = update
        return [last[index] for index in range(len(self.tickets))]

    def arrive(self, index: int, update: Update | PlaitError) -> None:
        """Take what the worker sends; called on the event loop."""
        self._arrived.put_nowait((index, update))

    def release(self) -> None:
        """Give the answers back, read to the end or not; what they hold is freed."""
        self._worker.release(self)


class Worker:
    """Runs an engine for many clients.

    max_waiting: requests that may wait beside those that run; more are refused.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, max_waiting: int) -> None:
        self.engine = engine
        self.stats: EngineStats = engine.stats()
        """As of the last step."""
        self.max_open = engine.memory_plan.num_rows + max_waiting
        self.num_open = 0
        """Requests that were taken and are not over."""
        self._metrics = metrics
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: list[Ticket] = []
        self._closed = False
        self._broken: Exception | None = None
        self._events: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="plait-engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """True while requests are served."""
        return self._thread.is_alive() and self._broken is None

    def start(self) -> None:
        """Start the thread; called on the event loop that will submit."""
        self._events = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End the thread; what still runs is cancelled."""
        self._commands.put(self._close)
        await asyncio.to_thread(self._thread.join)

    async def submit(self, asks: Sequence[Ask], *, streams: bool) -> Answers:
        """Put requests in line, all or none; every answer must be released in the end.

        Raises: BusyError if the queue is full; RequestError or CapacityError of the engine.
        """
        count = sum(len(ask.params) for ask in asks)
        if count > self.max_open:
            raise RequestError(
                f"{count} answers at once; this server holds {self.max_open}: ask for fewer"
            )
        if self.num_open + count > self.max_open:
            raise BusyError(
                f"{self.num_open} requests run or wait and {self.max_open} may, {count} more do "
                "not fit: try again later"
            )
        self.num_open += count
        assert self._events is not None  # start() comes first
        taken: asyncio.Future[Answers] = self._events.create_future()
        answers, started = Answers(self, streams=streams), time.monotonic()
        self._commands.put(lambda: self._submit(asks, answers, started, taken))
        try:
            return await taken
        except asyncio.CancelledError:
            # The client went when its request was taken but this had not gone on yet.
            if taken.done() and not taken.cancelled() and taken.exception() is None:
                answers.release()
            raise

    def release(self, answers: Answers) -> None:
        """Cancel what is not over."""
        self._commands.put(lambda: self._cancel(answers.tickets))

    # What follows runs in the worker's thread, except `_resolve` and `_dispatch`.

    def _run(self) -> None:
        while not self._closed:
            runs = self.engine.has_work and self._broken is None
            self._obey(wait=not runs)
            if self._broken is None and self.engine.has_work and not self._closed:
                try:
                    self.engine.step()
                except Exception as error:
                    log.exception("a step of the engine failed; its requests are ended")
                    self._fail_all(error)
            self._deliver()
            self.stats = self.engine.stats()

    def _obey(self, *, wait: bool) -> None:
        """Run the commands that are there; with `wait`, at least one."""
        while wait or not self._commands.empty():
            self._commands.get()()
            wait = False

    def _close(self) -> None:
        self._closed = True
        self._cancel(list(self._tickets))

    def _submit(
        self,
        asks: Sequence[Ask],
        answers: Answers,
        started: float,
        taken: "asyncio.Future[Answers]",
    ) -> None:
        error = None
        try:
            if self._broken is not None:
                raise ServerError(f"the engine has stopped: {self._broken}")
            for number, ask in enumerate(asks):
                for params in ask.params:
                    handle = self.engine.submit(ask.prompt_ids, params)
                    answers.tickets.append(Ticket(answers, number, handle, started))
        except Exception as problem:
            for ticket in answers.tickets:
                self.engine.cancel(ticket.handle)
            error = problem if isinstance(problem, PlaitError) else _unexpected(problem)
        else:
            self._tickets += answers.tickets
        count = sum(len(ask.params) for ask in asks)
        self._call(self._resolve, taken, answers, error, count)

    def _resolve(
        self,
        taken: "asyncio.Future[Answers]",
        answers: Answers,
        error: PlaitError | None,
        count: int,
    ) -> None:
        if error is not None:
            self.num_open -= count
            if not taken.cancelled():
                taken.set_exception(error)
        elif taken.cancelled():  # the client went while its request was being taken
            answers.release()
        else:
            taken.set_result(answers)

    def _cancel(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket in self._tickets:
                self._tickets.remove(ticket)
                self.engine.cancel(ticket.handle)
                self._metrics.finished(ticket.timer, "cancelled")
                self._call(self._dispatch, [(ticket, _CancelledError())])

    def _fail_all(self, error: Exception) -> None:
        """End every request with an error, since nobody knows whose fault it is."""
        try:
            for ticket in self._tickets:
                self.engine.cancel(ticket.handle)
        except Exception as problem:
            log.exception("the engine cannot be used any more: restart the server")
            self._broken = problem
        self._finish([(ticket, _unexpected(error)) for ticket in self._tickets])

    def _deliver(self) -> None:
        """Send what is new of every request."""
        news: list[tuple[Ticket, Update | PlaitError]] = []
        for ticket in self._tickets:
            handle = ticket.handle
            num_tokens = len(handle.generation.token_ids)
            self._metrics.progressed(ticket.timer, num_tokens)
            if not ticket.answers.streams and not handle.finished:
                continue
            try:
                delta = handle.read()
            except PlaitError as error:
                news.append((ticket, error))
                continue
            except Exception as error:
                log.exception("a request failed; the others go on")
                news.append((ticket, _unexpected(error)))
                continue
            if delta.token_ids or delta.completion is not None:
                trace = handle.generation.thinking.num_trace_tokens
                news.append((ticket, Update(delta, trace)))
        self._finish(news)

    def _finish(self, news: list[tuple[Ticket, Update | PlaitError]]) -> None:
        """Send news to the event loop, and forget the tickets that are over."""
        for ticket, update in news:
            completion = update.delta.completion if isinstance(update, Update) else None
            if completion is not None or isinstance(update, PlaitError):
                self._tickets = [each for each in self._tickets if each is not ticket]
                reason = completion.finish_reason if completion is not None else "error"
                self._metrics.finished(ticket.timer, reason)
        if news:
            self._call(self._dispatch, news)

    def _dispatch(self, news: list[tuple[Ticket, Update | PlaitError]]) -> None:
        for ticket, update in news:
            if isinstance(update, PlaitError) or update.delta.completion is not None:
                self.num_open -= 1
            ticket.answers.arrive(ticket.index, update)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._events is not None
        try:
            self._events.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop is closed: nobody listens any more
            log.debug("an update came after the server had stopped")


def _unexpected(error: Exception) -> ServerError:
    return ServerError(f"the request failed inside the server: {type(error).__name__}: {error}")
