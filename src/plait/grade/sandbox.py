"""Run model-written Python where it can do no harm.

Three layers. *Namespaces*: own processes, network (none), IPC and mounts; the file system holds the
system's libraries and this Python, read-only, and an empty /tmp, so neither the user's files nor
other processes can be seen. bubblewrap builds them if it is installed, else util-linux's `unshare`
with `sandbox_jail`; root becomes a user without rights or name. *Limits*: processor time, address
space, file sizes, processes, open files, a scrubbed environment. *The parent*: a limit on wall time
and output, and a kill that takes every process of the run, even if the parent itself is killed.

What this does not do: limits on memory hold per process, the kernel is shared, and system calls are
not filtered, but for a few that hold memory which no limit counts. Where namespaces are not
permitted nothing runs unless told to, for guards inside Python stop accidents, not code.
"""

import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal, NamedTuple

from plait.core.errors import ConfigError

Kind = Literal["bubblewrap", "unshare", "none"]

_JAIL = Path(__file__).with_name("sandbox_jail.py")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_TOOLS: dict[Kind, str] = {"bubblewrap": "bwrap", "unshare": "unshare"}
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Users nobody has; one a run where root starts many, since the kernel counts processes by user.
_FIRST_USER, _NUM_USERS = 50_000, 10_000


class Limits(NamedTuple):
    """What a program may use."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_bytes: int = 1 << 30
    """Address space of each process."""
    num_processes: int = 16
    num_files: int = 64
    file_bytes: int = 16 << 20
    """Size of any one file; /tmp holds four times as much."""
    output_bytes: int = 1 << 20
    """What it may print, standard output and error together."""


class Outcome(NamedTuple):
    """How a run ended and what it printed; the return code is 0 only if the program ended well."""

    status: Literal["finished", "timed out", "printed too much"]
    return_code: int
    stdout: str
    stderr: str


def run_python(
    source: str,
    stdin: str = "",
    limits: Limits = Limits(),  # noqa: B008 (a constant)
    *,
    allow_unsandboxed: bool = False,
) -> Outcome:
    """Run a Python program, its standard input given, in a fresh sandbox.

    Raises: ConfigError if no sandbox can be made here and running without is not allowed.
    """
    kind = find_sandbox()
    if kind == "none" and not allow_unsandboxed:
        raise ConfigError(
            "this machine permits no sandbox (bubblewrap or unshare with namespaces), and "
            "model-written code is not run outside one: install bubblewrap, allow user "
            "namespaces, or accept the risk with allow_unsandboxed=True"
        )
    return _run(kind, source, stdin, limits)


@lru_cache(maxsize=1)
def find_sandbox() -> Kind:
    """Return the sandbox that works here, tried with a small program; found once."""
    # bubblewrap run by root leaves root's exemption from the limit on processes.
    kinds: list[Kind] = ["unshare"] if os.geteuid() == 0 else ["bubblewrap", "unshare"]
    for kind in kinds:
        if shutil.which(_TOOLS[kind]) and _run(kind, "print(1)", "", Limits()).stdout == "1\n":
            return kind
    return "none"


def _run(kind: Kind, source: str, stdin: str, limits: Limits) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="plait-sandbox-") as name:
        folder = Path(name)
        for part in ("job", "root", "tmp"):
            (folder / part).mkdir()
        (folder / "job/main.py").write_text(source, encoding="utf-8", errors="replace")
        (folder / "stdin").write_text(stdin, encoding="utf-8", errors="replace")
        with (folder / "stdin").open("rb") as given:
            process = subprocess.Popen(
                _command(kind, folder, limits),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder / "tmp",
                env=_ENVIRONMENT,
                start_new_session=True,
            )
            return _supervise(process, limits)


def _command(kind: Kind, folder: Path, limits: Limits) -> list[str]:
    python = {sys.prefix, sys.base_prefix}
    python |= {os.path.realpath(path) for path in python}
    prefixes = {path for path in python if not path.startswith("/usr/") and path != "/usr"}
    shown = [path for path in (*_SYSTEM, *sorted(prefixes)) if os.path.lexists(path)]
    plan = {
        "kind": kind,
        "root": str(folder / "root"),
        "job": str(folder / "job"),
        "shown": [*shown, *(path for path in _DEVICES if os.path.exists(path))],
        "user": _FIRST_USER + secrets.randbelow(_NUM_USERS) if os.geteuid() == 0 else None,
        "tmp_bytes": 4 * limits.file_bytes,
        "limits": limits._asdict(),
    }
    # Should this process be killed while it waits, `timeout` still ends the program.
    jail = [sys.executable, "-I", "-S", "-B"]
    timed = ["timeout", "--signal=KILL", str(limits.wall_s + 1)]
    if kind == "none":
        return [*timed, *jail, str(_JAIL), json.dumps(plan)]
    timed.append(shutil.which(_TOOLS[kind]) or _TOOLS[kind])
    if kind == "unshare":
        namespaces = ["--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child"]
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        return [*timed, *user, *namespaces, "--mount-proc", *jail, str(_JAIL), json.dumps(plan)]
    binds = [part for path in shown for part in _bubblewrap_bind(path)]
    return [
        *(*timed, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"),
        # Before the binds: Python itself may be installed below /tmp.
        *("--size", str(4 * limits.file_bytes), "--tmpfs", "/tmp"),
        *(*binds, "--ro-bind", str(_JAIL), "/jail.py", "--ro-bind", str(folder / "job"), "/job"),
        *("--proc", "/proc", "--dev", "/dev", "--chdir", "/tmp"),
        *(*jail, "/jail.py", json.dumps(plan)),
    ]


def _bubblewrap_bind(path: str) -> list[str]:
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path]


def _supervise(process: subprocess.Popen[bytes], limits: Limits) -> Outcome:
    """Read what the process prints until it ends or must be ended; nothing of it survives."""
    deadline = time.monotonic() + limits.wall_s
    assert process.stdout  # both opened as pipes
    assert process.stderr
    printed: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    status: Literal["finished", "timed out", "printed too much"] = "finished"
    try:
        if not _read_all(printed, deadline, limits.output_bytes):
            too_much = sum(map(len, printed.values())) > limits.output_bytes
            status = "printed too much" if too_much else "timed out"
        else:
            process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:  # it closed its outputs and went on
        status = "timed out"
    finally:
        with suppress(ProcessLookupError):  # all of the group may have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        texts = [
            bytes(printed[pipe][: limits.output_bytes]).decode(errors="replace")
            for pipe in (process.stdout, process.stderr)
        ]
        process.stdout.close()
        process.stderr.close()
    return Outcome(status, process.returncode, *texts)


def _read_all(printed: dict[IO[bytes], bytearray], deadline: float, output_bytes: int) -> bool:
    """Read pipes until all end; False if time or space runs out before."""
    with selectors.DefaultSelector() as selector:
        for pipe in printed:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if not ready:
                return False
            for key, _ in ready:
                pipe: IO[bytes] = key.fileobj  # pyright: ignore[reportAssignmentType]
                chunk = os.read(key.fd, 65_536)
                printed[pipe] += chunk
                if not chunk:
                    selector.unregister(pipe)
            if sum(map(len, printed.values())) > output_bytes:
                return False
    return True
