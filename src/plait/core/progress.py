"""Progress of long work: a bar with rate and ETA on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

PLAIN_LINE_EVERY_S = 10.0


class Progress:
    """Counts work done; shows it on stderr as a bar or, when not a terminal, as a line every 10 s.

    `total` may be None when unknown. `advance(n, note)` adds n units; `note` is shown at the end.
    """

    def __init__(self, description: str, total: int | None = None, unit: str = "it") -> None:
        self.description, self.unit = description, unit
        self.total: float | None = total
        self.done = 0
        self.resumed_at = 0
        self.started = time.monotonic()
        self._last_line = self.started
        self._bar = _RichBar(self) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume(self, done: int) -> None:
        """Start counting from work that an earlier run finished; it does not enter the rate."""
        self.done = self.resumed_at = done

    @property
    def rate_per_s(self) -> float:
        """Units per second since this object was made."""
        return (self.done - self.resumed_at) / max(time.monotonic() - self.started, 1e-9)

    def line(self, note: str = "") -> str:
        """Return the state as one line of text."""
        text = f"{self.description}: {self.done:,.0f}"
        if self.total is not None:
            text += f"/{self.total:,.0f}"
        rate = self.rate_per_s
        text += f" {self.unit}, {rate:,.3g} {self.unit}/s"
        if self.total is not None and rate > 0:
            text += f", ETA {_clock((self.total - self.done) / rate)}"
        return f"{text}  {note}".rstrip()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Add finished work and show it."""
        self.done += amount
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(note)
        elif now - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = now
            sys.stderr.write(self.line(note) + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def track(
    items: Iterable[Item], description: str, total: int | None = None, unit: str = "it"
) -> Iterator[Item]:
    """Yield the items while showing progress."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # pyright: ignore[reportArgumentType]
    with Progress(description, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


class _RichBar:
    def __init__(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self.progress = progress
        self.bars = Bars(
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}"),
            console=Console(stderr=True),
            transient=False,
        )
        self.bars.start()
        self.task = self.bars.add_task("", total=progress.total, line=progress.line())

    def update(self, note: str) -> None:
        progress = self.progress
        self.bars.update(
            self.task, completed=progress.done, total=progress.total, line=progress.line(note)
        )

    def close(self) -> None:
        self.bars.stop()


def _clock(seconds: float) -> str:
    minutes, secs = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
