import subprocess
import sys

import pytest

import plait


def test_importing_plait_loads_nothing_heavy():
    code = "import sys, plait; print(*sorted(m for m in ('torch', 'pydantic') if m in sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "\n"


def test_every_public_name_is_reachable():
    names = ["Engine", "HybridLM", "ModelSpec", "PlaitError", "SamplingParams", "load", "save"]
    assert plait.__all__ == names == dir(plait)
    for name in names:
        assert getattr(plait, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = plait.Trainer
