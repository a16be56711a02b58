import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from plait.core.errors import ConfigError
from plait.grade import sandbox
from plait.grade.sandbox import Limits, find_sandbox, run_python

QUICK = Limits(wall_s=20.0, cpu_s=5, memory_bytes=512 << 20, num_processes=8)


@pytest.fixture(autouse=True)
def _needs_a_sandbox():
    if find_sandbox() == "none" and os.environ.get("CI") != "true":
        pytest.skip("namespaces are not permitted on this machine")


def test_a_program_runs_with_input_output_and_code():
    outcome = run_python(
        "import sys\nprint(input()[::-1])\nsys.stderr.write('é')\nexit(3)", "abc\n"
    )
    assert outcome == ("finished", 3, "cba\n", "é")


def test_the_environment_and_files_of_the_user_cannot_be_seen(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    monkeypatch.setenv("PLAIT_SECRET", "x")
    source = f"""
import os
print(os.path.exists({str(secret)!r}), os.path.exists("/etc/passwd"), os.listdir("/tmp"))
print("PLAIT_SECRET" in os.environ, os.getcwd(), os.listdir("/job"))
"""
    lines = run_python(source).stdout.splitlines()
    # Where Python itself is installed below /tmp, only the way to it is seen.
    python = {Path(path).parts for path in (sys.prefix, sys.base_prefix)}
    way = sorted({parts[2] for parts in python if parts[1] == "tmp"})
    assert lines == [f"False False {way}", "False /tmp ['main.py']"]


def test_nothing_can_be_written_outside_tmp():
    source = """
import os, sys
places = ["/", "/usr", "/job", sys.prefix, "/proc/sys/kernel", os.path.dirname(os.__file__)]
for place in places:
    try:
        open(place + "/plait-was-here", "w")
        print("wrote", place)
    except OSError:
        pass
open("/tmp/fine", "w").write("fine")
print(open("fine").read())
"""
    assert run_python(source).stdout == "fine\n"


def test_rights_cannot_be_taken_back():
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mount(b"none", b"/", None, ctypes.c_ulong(32 | 4096), None))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print([status[name].strip() for name in ("CapEff", "CapBnd")])
try:
    os.chroot("/tmp")
except OSError as error:
    print(type(error).__name__)
"""
    assert run_python(source).stdout.splitlines() == ["-1", f"{['0' * 16] * 2}", "PermissionError"]


def test_the_network_cannot_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = f"""
import socket
for address in [("127.0.0.1", {server.getsockname()[1]}), ("1.1.1.1", 53)]:
    try:
        socket.create_connection(address, timeout=2)
        print("reached", address)
    except OSError as error:
        print("no")
"""
        assert run_python(source).stdout == "no\nno\n"


def test_a_fork_bomb_is_bounded():
    source = """
import os, time
made = 0
while made < 200:
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    made += 1
print(made, flush=True)
os._exit(0)
"""
    outcome = run_python(source, "", QUICK)
    assert outcome.status == "finished"
    assert 0 < int(outcome.stdout) < QUICK.num_processes


def test_ten_gigabytes_are_refused():
    outcome = run_python("x = bytearray(10 << 30)", "", QUICK)
    assert outcome.return_code != 0
    assert "MemoryError" in outcome.stderr


def test_memory_that_no_limit_counts_is_refused():
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for make in (lambda: libc.shmget(0, 1 << 20, 0o1600), lambda: libc.msgget(0, 0o1600)):
    print(make(), os.strerror(ctypes.get_errno()))
try:
    os.memfd_create("x")
except OSError as error:
    print(error.strerror)
"""
    refused = "Operation not permitted\n"
    assert run_python(source, "", QUICK).stdout == f"-1 {refused}-1 {refused}{refused}"


def test_a_large_file_is_refused():
    outcome = run_python("open('x', 'wb').write(bytes(64 << 20))", "", QUICK)
    assert outcome.return_code != 0


def test_endless_printing_is_cut():
    limits = QUICK._replace(output_bytes=10_000)
    outcome = run_python("while True: print('x' * 1000)", "", limits)
    assert outcome.status == "printed too much"
    assert len(outcome.stdout) <= 10_000


def test_endless_work_runs_out_of_processor_time():
    outcome = run_python("while True: pass", "", QUICK._replace(cpu_s=1))
    assert outcome.status == "finished"
    assert outcome.return_code != 0


# Sleeps under a name by which the host can find it.
NAP = f"nap{os.getpid()}"
SLEEP = f"""
import ctypes, os, signal, time
ctypes.CDLL(None).prctl(15, b"{NAP}", 0, 0, 0)
"""


@pytest.mark.parametrize(
    "source",
    [
        "time.sleep(1000)",
        # Not even one that ignores signals, leaves the session and closes its outputs stays.
        "for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)\n"
        "if os.fork(): time.sleep(1000)\n"
        "os.setsid(); os.close(1); os.close(2); time.sleep(1000)",
    ],
)
def test_sleeping_for_ever_ends_with_every_process(source):
    started = time.monotonic()
    outcome = run_python(SLEEP + source, "", QUICK._replace(wall_s=1.0))
    assert outcome.status == "timed out"
    assert time.monotonic() - started < 10
    wait_until(lambda: not naps())


def test_a_program_does_not_outlive_a_parent_that_is_killed():
    child = f"""
from plait.grade.sandbox import Limits, run_python
run_python({SLEEP + "time.sleep(1000)"!r}, "", Limits(wall_s=1.0))
"""
    with subprocess.Popen([sys.executable, "-c", child]) as parent:
        wait_until(naps)
        parent.kill()
    wait_until(lambda: not naps())


def naps():
    """Return the processes that sleep under our name."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            found += [pid] * (file.read().strip() == NAP)
    return found


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_parent_cannot_be_killed():
    source = f"""
import os, signal
for pid in [{os.getpid()}, os.getppid(), -1]:
    try:
        os.kill(pid, signal.SIGKILL)
        print("sent", pid)
    except OSError as error:
        print(type(error).__name__)
"""
    outcome = run_python(source)
    assert outcome.status == "finished"
    assert f"sent {os.getpid()}" not in outcome.stdout


def test_runs_share_the_machine():
    outcomes = []
    threads = [
        threading.Thread(target=lambda n=n: outcomes.append(run_python(f"print({n})").stdout))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [f"{n}\n" for n in range(6)]


def test_without_a_sandbox_nothing_runs_unless_told_to(monkeypatch):
    monkeypatch.setattr(sandbox, "find_sandbox", lambda: "none")
    with pytest.raises(ConfigError, match="allow_unsandboxed=True"):
        run_python("print(1)")
    assert run_python("print(1)", allow_unsandboxed=True).stdout == "1\n"
    limits = QUICK._replace(wall_s=0.5)
    assert run_python("while 1: pass", "", limits, allow_unsandboxed=True).status == "timed out"
