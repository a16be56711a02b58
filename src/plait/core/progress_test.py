import io
import sys

from plait.core import progress as module
from plait.core.progress import Progress, track


def test_plain_lines_give_rate_and_eta(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress("training", total=100, unit="step") as bar:
        bar.resume(40)
        clock[0] += 20
        bar.advance(20, "loss 1.5")
    assert sys.stderr.getvalue() == "training: 60/100 step, 1 step/s, ETA 0:40  loss 1.5\n"


def test_short_work_stays_silent_off_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(track([1, 2, 3], "items")) == [1, 2, 3]
    assert sys.stderr.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    list(track(range(3), "pages", unit="page"))
    assert "pages: 3/3 page" in sys.stderr.getvalue()
