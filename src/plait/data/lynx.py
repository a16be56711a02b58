"""HTML to text by the text browser lynx, which keeps formulas, tables and the layout of code.

It runs as a subprocess for each page: without network, with a time limit, and with limits on its
memory and on what it reads and prints. The flags are those of NVIDIA's published pipeline for
Nemotron-CC-Math, which took them for the same reasons.
"""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
from functools import cache
from typing import IO, NamedTuple

from plait.core.errors import ConfigError

_FLAGS = (
    "-dump", "-stdin", "-nolist", "-width=10000", "-assume_charset=utf-8",
    "-display_charset=utf-8", "-localhost", "-force_html",
)  # fmt: skip
_ENVIRONMENT = {"HOME": "/nonexistent", "TERM": "dumb", "LANG": "C.UTF-8"}


class Limits(NamedTuple):
    """What one page may cost."""

    max_input_bytes: int = 10_000_000
    max_output_bytes: int = 20_000_000
    max_memory_bytes: int = 2**30
    max_s: float = 20.0


LIMITS = Limits()


class Rendered(NamedTuple):
    """The text of a page, or why there is none."""

    text: str
    fault: str | None = None
    """`page_too_large`, `render_timeout`, `render_too_long`, `render_failed` or `no_text`."""


@cache
def find_lynx() -> str:
    """Return the path of lynx.

    Raises: ConfigError if it is not installed.
    """
    path = shutil.which("lynx")
    if path is None:
        raise ConfigError(
            "pages of mathematics are rendered by the text browser lynx, which is not installed; "
            "install it (Debian: apt-get install lynx)"
        )
    return path


def render(html: str, limits: Limits = LIMITS, lynx: str | None = None) -> Rendered:
    """Return the text of an HTML page as lynx prints it.

    Raises: ConfigError if lynx is not installed.
    """
    page = html.encode("utf-8", errors="replace")
    if len(page) > limits.max_input_bytes:
        return Rendered("", "page_too_large")
    with tempfile.TemporaryFile() as source:
        source.write(page)
        source.seek(0)
        return _run([lynx or find_lynx(), *_FLAGS], source, limits)


def _run(command: list[str], source: IO[bytes], limits: Limits) -> Rendered:
    overdue = threading.Event()
    with subprocess.Popen(
        command,
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_ENVIRONMENT,
        start_new_session=True,
    ) as browser:
        assert browser.stdout is not None

        def end() -> None:
            overdue.set()
            os.killpg(browser.pid, signal.SIGKILL)

        timer = threading.Timer(limits.max_s, end)
        timer.start()
        try:
            _limit_memory(browser.pid, limits.max_memory_bytes)
            output = browser.stdout.read(limits.max_output_bytes + 1)
            if len(output) > limits.max_output_bytes:
                os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
        finally:
            timer.cancel()
    if overdue.is_set():
        return Rendered("", "render_timeout")
    if len(output) > limits.max_output_bytes:
        return Rendered("", "render_too_long")
    if browser.returncode != 0:
        return Rendered("", "render_failed")
    text = output.decode("utf-8", errors="replace")
    return Rendered(text) if text.strip() else Rendered("", "no_text")


def _limit_memory(pid: int, max_bytes: int) -> None:
    # Only Linux can limit a process from outside; elsewhere the limit on time has to do.
    if hasattr(resource, "prlimit"):
        try:
            resource.prlimit(pid, resource.RLIMIT_AS, (max_bytes, max_bytes))
        except ProcessLookupError:
            return
