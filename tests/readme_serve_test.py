"""The text on serving a checkpoint works as written, on the test-sized run of the tiny recipe."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BIN = str(Path(sys.executable).parent)
ADDRESS = ("127.0.0.1", 8000)


def block(language: str) -> str:
    [text] = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return text


def answers() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(ADDRESS) == 0


def test_a_checkpoint_is_served_as_the_text_says(run_directory, tmp_path):
    if answers():
        pytest.skip("port 8000, which the text names, is taken on this machine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(run_directory)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    options = {"cwd": tmp_path, "env": environment, "text": True}
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen(["bash", "-c", f"exec {block('sh')}"], stdout=said, **options)
        try:
            deadline = time.monotonic() + 60
            while not answers():
                assert server.poll() is None, "plait serve ended"
                assert time.monotonic() < deadline
                time.sleep(0.1)
            client = subprocess.run(
                [sys.executable, "-c", block("py")], capture_output=True, check=True, **options
            )
            assert len(client.stdout.splitlines()) >= 2
        finally:
            server.terminate()
            server.wait(40)
    assert "chat page   http://127.0.0.1:8000/" in (tmp_path / "said").read_text()
