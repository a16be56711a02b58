import os
import subprocess
import sys
from pathlib import Path

import pytest

from plait.kernels import native
from plait.kernels.native import build

SOURCE = Path(build.__file__).parents[3]


def test_without_a_compiler_it_says_so_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "processor", lambda: "avx2")
    monkeypatch.setattr(build, "library_path", lambda kind: tmp_path / "none.so")
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = build.build()
    assert "no C++ compiler 'no-such-compiler'" in message
    assert "\n" not in message


def test_a_library_of_other_sources_or_another_processor_is_not_loaded(monkeypatch, tmp_path):
    for source in build.HERE.glob("*.[hc]*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    before = {build.library_path(kind).name for kind in ("avx2", "avx512")}
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert {build.library_path(kind).name for kind in ("avx2", "avx512")} == before
    assert len(before) == 2
    (tmp_path / "vec.h").write_text("// changed")
    assert build.library_path("avx2").name not in before
    monkeypatch.delenv("PLAIT_NATIVE", raising=False)
    monkeypatch.setattr(native, "processor", lambda: "avx2")
    found = native.Library()
    assert found.functions is None
    assert found.status == "off: not built, run `python -m plait.kernels.native.build`"


def test_a_broken_library_leaves_everything_to_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("PLAIT_NATIVE", raising=False)
    (tmp_path / "x.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "processor", lambda: "avx2")
    monkeypatch.setattr(native, "library_path", lambda kind: tmp_path / "x.so")
    found = native.Library()
    assert found.functions is None
    assert found.status.startswith("off: ")


@pytest.mark.skipif(native.library().functions is None, reason="native kernels are not built")
def test_the_environment_turns_it_off_and_one_openmp_runtime_serves_both():
    # torch is imported once, and the processes that read the variable are forked from there.
    code = """
import os
import torch
for value in ("0", "1"):
    if os.fork() == 0:
        os.environ["PLAIT_NATIVE"] = value
        from plait.kernels import native
        files = {line.split()[-1] for line in open("/proc/self/maps")}
        runtimes = [file for file in files if "gomp" in file or "omp5" in file]
        print(native.library().status, native.takes(torch.ones(1)), len(runtimes), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    off, on = found.stdout.splitlines()
    assert off == "off: PLAIT_NATIVE is 0 False 1"
    assert on.endswith("True 1")
