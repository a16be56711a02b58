"""Stopping politely: the first Ctrl-C or SIGTERM asks, the second is obeyed at once."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, wrote a checkpoint of its steps and stopped.

    A KeyboardInterrupt, so that nothing that handles errors takes it for one (exit code 130).
    """


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets `signal_name`.

    That first signal puts the former handlers back, so a second one acts as if this were not here.
    Signals that are ignored stay ignored, and outside the main thread nothing is installed: Python
    allows handlers there only.
    """

    signal_name: str | None = None

    def __init__(self) -> None:
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                former = signal.getsignal(number)
                if former not in (signal.SIG_IGN, None):
                    self._former[number] = former
                    signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        self._restore()
        logger.warning(
            "%s: finishing this step or evaluation, then a checkpoint; once more to stop at once",
            self.signal_name,
        )

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())
