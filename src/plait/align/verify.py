"""Verifiers as rewards, each in a process of its own that may hang or die without harm.

A verifier is a function (question, reference, answer) -> Score. In reinforcement learning it reads
thousands of odd answers a minute, so sooner or later one sends it into an endless loop or crashes
it. A worker that does not answer in time is killed and started anew; that answer gets no reward,
the reason is kept, and the run goes on. A score that is no number counts as none.
"""

import math
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from plait.grade.verifiers import Verifier, load_verifier
from plait.train.interrupt import SIGNALS

START_S = 60.0
"""Longest that a worker may take to start and to import a verifier; grading is timed apart."""


class Job(NamedTuple):
    """One answer to grade."""

    verifier: str
    """`module:function`, imported where it runs."""
    question: str
    reference: str
    answer: str


class Outcome(NamedTuple):
    """A reward, or None and why there is none."""

    value: float | None
    reason: str


class VerifierPool:
    """Workers that grade; a context, after which none is left.

    Raises: ValueError if a limit is not positive.
    """

    def __init__(self, num_workers: int = 1, timeout_s: float = 10.0) -> None:
        if num_workers < 1 or timeout_s <= 0:
            raise ValueError(
                f"num_workers {num_workers} and timeout_s {timeout_s} must be positive"
            )
        self._timeout_s = timeout_s
        self._workers = [_Worker() for _ in range(num_workers)]
        self._waiting: deque[tuple[int, Job]] = deque()
        self._outcomes: dict[int, Outcome] = {}
        self._num_jobs = 0

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def begin(self, job: Job) -> Callable[[], Outcome]:
        """Take an answer to grade, and return what waits for its outcome.

        Workers are given what waits whenever this, or what it returned, is called.
        """
        index = self._num_jobs
        self._num_jobs += 1
        self._waiting.append((index, job))
        self._advance(0.0)

        def outcome() -> Outcome:
            while index not in self._outcomes:
                self._advance(math.inf)
            return self._outcomes.pop(index)

        return outcome

    def grade(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Grade answers, in their order; one that cannot be graded gets a reason and no value."""
        return [outcome() for outcome in [self.begin(job) for job in jobs]]

    def _advance(self, patience_s: float) -> None:
        """Give idle workers what waits, and collect what is done within `patience_s`."""
        for worker in self._workers:
            if worker.job is None and self._waiting:
                worker.ask(*self._waiting.popleft())
        busy = [worker for worker in self._workers if worker.job is not None]
        soonest = min((worker.deadline for worker in busy), default=0.0) - time.monotonic()
        ready = wait([w.connection for w in busy], max(0.0, min(soonest, patience_s)))
        for worker in busy:
            if worker.connection in ready:
                self._outcomes |= worker.read(self._timeout_s)
            elif time.monotonic() >= worker.deadline:
                reason = f"the verifier did not answer in {self._timeout_s:g} s"
                self._outcomes[worker.give_up()] = Outcome(None, reason)


class _Worker:
    """A process with a pipe, started when first needed."""

    def __init__(self) -> None:
        self.job: int | None = None
        self.deadline = math.inf
        self.connection: Any = None
        self._process: Any = None

    def ask(self, index: int, job: Job) -> None:
        if self._process is None:
            self._start()
        try:
            self.connection.send(job)
        except ConnectionError:  # someone killed it between two jobs
            self.stop()
            self._start()
            self.connection.send(job)
        self.job, self.deadline = index, time.monotonic() + START_S

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=False)
        process.start()
        self._process = process
        theirs.close()

    def read(self, timeout_s: float) -> dict[int, Outcome]:
        """Return the outcome by job; nothing if grading has only begun, which sets its deadline."""
        assert self.job is not None
        index = self.job
        try:
            outcome = self.connection.recv()
        except (EOFError, ConnectionError):
            self.stop()
            return {index: Outcome(None, "the verifier's process died")}
        if outcome is None:
            self.deadline = time.monotonic() + timeout_s
            return {}
        self.job, self.deadline = None, math.inf
        return {index: outcome}

    def give_up(self) -> int:
        assert self.job is not None
        index = self.job
        self.stop()
        return index

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self.connection.close()
        self.__init__()


def _serve(connection: Connection) -> None:
    """Grade what comes until the other side is gone; say None when grading begins."""
    for number in SIGNALS:  # Ctrl-C reaches every process, but the run finishes its step first
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        verifier = load_verifier(job.verifier)  # importing it is not timed
        connection.send(None)
        connection.send(_graded(verifier, job))


def _graded(verifier: Verifier, job: Job) -> Outcome:
    try:
        score = verifier(job.question, job.reference, job.answer)
        value, reason = float(score.value), str(score.reason)
    except Exception as error:  # the boundary to verifiers, which may raise anything
        return Outcome(None, f"the verifier raised {type(error).__name__}: {error}")
    if not math.isfinite(value):
        return Outcome(None, f"the verifier's score is {value}")
    return Outcome(value, reason)
