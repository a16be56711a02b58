"""Grade a mathematical answer by value, whatever its form: fractions, sets, intervals, formulas.

math-verify (sympy behind it) parses and compares. It is neither thread-safe nor sure to return:
`9^{9^{9^9}}` keeps sympy busy for ever. So it runs in worker processes, each with a limit on
memory; one that does not answer in time or dies is killed and replaced, and the answer it choked on
scores 0. Both sides are wrapped in `\\boxed{}`, without which math-verify misreads tuples and
letters.

What counts as the answer: the last box; else, after the last "answer is", "Answer:" or "####", a
number that words follow, or the first formula in dollars, or the rest of the line, if it is no
prose; without such a mark the last formula or the last line; else the last expression that
math-verify itself finds in the text. Dollars enclose a formula where Pandoc says so (no space
inside, no digit behind), so that prices are none; spaces on both sides are taken too.
"""

import atexit
import json
import queue
import re
import selectors
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache

from plait.core.errors import ConfigError, DataError
from plait.grade.boxed import last_boxed
from plait.grade.score import Score

TIMEOUT_S = 5.0
START_TIMEOUT_S = 120.0
NUM_WORKERS = 2
WORKER = (sys.executable, "-m", "plait.grade.maths_worker")

_MARKER = re.compile(r"(?:\banswer\s+is\b|\banswer\s*:|####)[:*\s]*", re.IGNORECASE)
_BODY = r"((?:\\.|[^$\\\n])+)"
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$"
    rf"|(?<![\\$])\$(?=\S){_BODY}(?<=\S)\$(?!\d)"
    rf"|(?<![\\$])\$\s{_BODY}\s\$(?!\d)"
    r"|\\\((.+?)\\\)|\\\[(.+?)\\\]",
    re.DOTALL,
)
# A number and a word: "4 for all n", but not "3 sin x" or "2 x".
_LEADING_NUMBER = re.compile(
    r"[*\s]*([-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?)[.,;]?\s+"
    r"(?!(?:sin|cos|tan|log|exp|sqrt|mod|pi)\b)(?:[A-Za-z]{3,}|[aio][a-z]|so|by|to)\b"
)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def extract_answer(answer: str) -> str | None:
    """Return the expression an answer commits to, or None if it is buried in prose."""
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed
    marks = list(_MARKER.finditer(answer))
    if marks:
        answer = answer[marks[-1].end() :].partition("\n")[0]
        if number := _LEADING_NUMBER.match(answer):
            return number[1]
    if formulas := _FORMULA.findall(answer):
        return "".join(formulas[0 if marks else -1]).strip()
    lines = answer.strip().splitlines() or [""]
    last = lines[-1].strip().rstrip(".").strip("* ")
    return last if last and not _PROSE.search(last) else None


class Verifiers:
    """Worker processes that compare two expressions; safe to share between threads."""

    def __init__(self, num_workers: int = NUM_WORKERS, command: Sequence[str] = WORKER):
        self._command = list(command)
        self._idle: queue.Queue[subprocess.Popen[bytes] | None] = queue.Queue()
        for _ in range(num_workers):
            self._idle.put(None)  # started when first needed

    def verify(self, reference: str, answer: str, timeout_s: float = TIMEOUT_S) -> str:
        """Return "equal", "different", "no answer", "bad reference", "timed out" or "crashed".

        Blocks while all workers are busy.
        Raises: ConfigError if workers cannot start, because math-verify is missing for example.
        """
        worker = self._idle.get()
        try:
            if worker is None or worker.poll() is not None:
                worker = self._start()
            request = {"reference": reference, "answer": answer, "timeout_s": timeout_s}
            verdict = _ask(worker, request, timeout_s)
            if verdict in ("timed out", "crashed"):
                worker = _end(worker)
            return verdict
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all workers; a later `verify` starts new ones."""
        for _ in range(self._idle.qsize()):
            worker = self._idle.get()
            self._idle.put(_end(worker) if worker else None)

    def _start(self) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        if _reply(worker, START_TIMEOUT_S) != "ready":
            _end(worker)
            raise ConfigError(
                f"the verifier {' '.join(self._command)} did not start; mathematics needs the "
                "package math-verify: pip install 'plait[align]'"
            )
        return worker


def grade_maths(question: str, reference: str, answer: str) -> Score:
    """Score 1 if the answer's value equals the reference's, else 0 with the reason.

    Raises: DataError if the reference holds no expression.
    """
    if not answer.strip():
        return Score(0.0, "empty answer")
    found = extract_answer(answer)
    expected = extract_answer(reference) or reference.strip()
    if not expected:
        raise DataError(f"the reference of the question {question!r} is empty")
    wrapped = answer if found is None else rf"\boxed{{{found}}}"
    verdict = _shared_verifiers().verify(rf"\boxed{{{expected}}}", wrapped, TIMEOUT_S)
    if verdict == "bad reference":
        raise DataError(
            f"reference {reference!r} of the question {question!r} is no expression that "
            "math-verify can read"
        )
    if verdict == "equal":
        return Score(1.0, "correct")
    shown = "" if found is None else f" {found[:80]}"
    return Score(
        0.0,
        {
            "different": f"answered{shown or ' otherwise'}, expected {expected}",
            "no answer": "no expression in the answer",
            "timed out": f"comparing{shown} with {expected} took longer than {TIMEOUT_S:g} s",
            "crashed": f"the verifier crashed on{shown or ' the answer'}",
        }[verdict],
    )


_LOCK = threading.Lock()


def _shared_verifiers() -> Verifiers:
    with _LOCK:
        return _make_shared_verifiers()


@lru_cache(maxsize=1)
def _make_shared_verifiers() -> Verifiers:
    verifiers = Verifiers()
    atexit.register(verifiers.close)
    return verifiers


def _ask(worker: subprocess.Popen[bytes], request: dict[str, str | float], timeout_s: float) -> str:
    assert worker.stdin  # opened as a pipe
    try:
        worker.stdin.write(json.dumps(request).encode() + b"\n")
    except BrokenPipeError:
        return "crashed"
    return _reply(worker, timeout_s)


def _reply(worker: subprocess.Popen[bytes], timeout_s: float) -> str:
    """Return the worker's next line, "timed out" or "crashed"."""
    assert worker.stdout  # opened as a pipe
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            return "timed out"
    return worker.stdout.readline().decode().strip() or "crashed"


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe:
            pipe.close()
