"""The network that tests do without is really out of reach, for libraries and children too."""

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import loopback
import pytest

ELSEWHERE = "192.0.2.1"  # kept for documentation: nobody is there


def test_other_machines_are_refused_and_noted(refusals):
    with socket.socket() as plain, pytest.raises(loopback.NotLoopback, match=ELSEWHERE):
        plain.connect((ELSEWHERE, 80))
    with pytest.raises(OSError, match=r"look up example\.org"):
        urllib.request.urlopen("http://example.org", timeout=5)
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    with datagrams, pytest.raises(loopback.NotLoopback):
        datagrams.sendto(b"?", (ELSEWHERE, 53))
    assert [line.split(":")[0] for line in refusals()] == [
        f"a test wanted to connect to {ELSEWHERE}",
        "a test wanted to look up example.org",
        f"a test wanted to send to {ELSEWHERE}",
    ]


def test_children_are_watched_as_well(refusals):
    code = "import urllib.request as r\ntry: r.urlopen('http://example.org')\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert refusals() == [
        "a test wanted to look up example.org: tests reach only loopback (tests/loopback)"
    ]


def test_this_machine_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, server.getsockname()[1])).close()


def test_this_machine_is_reached_by_its_other_address_too():
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        try:
            datagrams.connect((ELSEWHERE, 53))  # sends nothing, but tells the address of this end
        except OSError:
            pytest.skip("no network but loopback")
        own = datagrams.getsockname()[0]
    with socket.create_server((own, 0)) as server:
        socket.create_connection((own, server.getsockname()[1])).close()


@pytest.mark.slow
def test_reaching_out_fails_a_test_that_got_over_it(tmp_path):
    (tmp_path / "quiet_test.py").write_text(
        "import socket\n\ndef test_quiet():\n    try:\n"
        "        socket.getaddrinfo('example.org', 80)\n    except OSError:\n        pass\n"
    )
    root = Path(__file__).parent.parent
    search = os.pathsep.join([str(root), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", tmp_path, tmp_path / "quiet_test.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": search},
    )
    assert "1 passed, 1 error" in result.stdout
    assert "wanted to look up example.org" in result.stdout
