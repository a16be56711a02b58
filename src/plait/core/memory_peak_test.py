import subprocess
import sys

import pytest

from plait.core import memory_peak
from plait.core.memory_peak import MemoryPeak
from plait.core.sizes import GIB, MIB


def used(num_bytes):
    """Fill memory and give it back."""
    len(b"x" * num_bytes)


def test_the_peak_is_that_of_the_time_since():
    whole = MemoryPeak()
    if not whole.is_exact:
        pytest.skip("this system does not forget peaks")
    before = whole.gib()
    used(300 * MIB)
    assert whole.gib() > before + 0.25
    small = MemoryPeak()
    used(2 * MIB)
    assert small.gib() < before + 0.1


def test_a_child_that_is_larger_counts():
    peak = MemoryPeak()
    own = peak.gib()
    num_bytes = int((own + 0.3) * GIB)
    subprocess.run([sys.executable, "-c", f"len(b'x' * {num_bytes})"], check=True)
    assert peak.gib() > own + 0.25
    if peak.is_exact:
        assert MemoryPeak().gib() < own + 0.1


def test_where_nothing_is_forgotten_it_is_the_peak_of_the_process(monkeypatch):
    monkeypatch.setattr(memory_peak, "_forget", lambda: False)
    used(300 * MIB)
    peak = MemoryPeak()
    assert not peak.is_exact
    assert peak.gib() > 0.25
