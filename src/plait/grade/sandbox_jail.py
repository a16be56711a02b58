"""Runs inside the sandbox before the program: builds file system and limits, lets go of rights.

Started as `python -I -S sandbox_jail.py PLAN` in namespaces that `unshare` or bubblewrap made (see
`plait.grade.sandbox`), so it imports nothing of plait. Any failure raises, and the program is not
run. Constants are Linux's own.
"""

import ctypes
import errno
import json
import os
import resource
import struct
import sys

_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 8192, 16384, 1 << 18
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _CAPABILITY_VERSION = 24, 38, 0x20080522
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
# Architecture as seccomp names it; shmget, semget, msgget, memfd_create, memfd_secret.
_FORBIDDEN = {
    "x86_64": (0xC000003E, (29, 64, 68, 319, 447)),
    "aarch64": (0xC00000B7, (194, 190, 186, 279, 447)),
}
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Carry out the plan in `argv[1]` and become the program."""
    plan = json.loads(sys.argv[1])
    if plan["kind"] == "unshare":
        _change_root(plan)
    # Without a process namespace the limit would count everything else the user runs.
    _limit(plan["limits"], processes=plan["kind"] != "none")
    if plan["kind"] == "unshare":
        _drop_rights(plan["user"])
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _forbid_calls()
    job = plan["job"] if plan["kind"] == "none" else "/job"
    if plan["kind"] != "none":
        os.chdir("/tmp")
    os.execv(sys.executable, [sys.executable, "-I", "-B", f"{job}/main.py"])


def _change_root(plan: dict) -> None:
    """Enter a file system of what is shown, all of it read-only, with a /tmp of its own.

    /tmp comes first: Python itself may be installed below it.
    """
    root = plan["root"]
    os.umask(0o022)
    _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.mkdir(root + "/tmp")
    options = f"size={plan['tmp_bytes']},mode=1777"
    _mount("tmpfs", root + "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    for path in plan["shown"]:
        _show(path, root + path)
    _show(plan["job"], root + "/job")
    _show("/proc", root + "/proc")
    os.chdir(root)
    _mount(root, "/", flags=_MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    _set_attributes("/", _AT_RECURSIVE, (_MOUNT_ATTR_RDONLY, 0))
    _set_attributes("/tmp", 0, (0, _MOUNT_ATTR_RDONLY))


def _show(path: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(path, target, flags=_MS_BIND | _MS_REC)


def _set_attributes(path: str, flags: int, set_and_clear: tuple[int, int]) -> None:
    """Set and clear attributes of the mount at `path`; of those below it too if recursive."""
    attributes = (ctypes.c_uint64 * 4)(*set_and_clear, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            path.encode(),
            ctypes.c_uint(flags),
            attributes,
            size,
        )
    )


def _limit(limits: dict, processes: bool) -> None:
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["num_files"],
        resource.RLIMIT_CORE: 0,
    }
    if processes:
        wanted[resource.RLIMIT_NPROC] = limits["num_processes"]
    for name, value in wanted.items():
        resource.setrlimit(name, (value, value))


def _drop_rights(user: int | None) -> None:
    """Give up every capability for good; root also gives up being root."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    for capability in range(last + 1):
        _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()))


def _forbid_calls() -> None:
    """Refuse the system calls that hold memory which no limit counts: System V's shared memory,
    queues and semaphores, and files without a name. On other processors they stay."""
    machine = os.uname().machine
    if machine not in _FORBIDDEN:
        return
    architecture, numbers = _FORBIDDEN[machine]
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06  # of classic BPF, on 32-bit words
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, kill), (load, 0, 0, 0)]
    # x86 has a second set of numbers for the same calls from here on.
    program += [(at_least, 0, 1, 0x40000000), (end, 0, 0, refuse)]
    for number in numbers:
        program += [(equal, 0, 1, number), (end, 0, 0, refuse)]
    program.append((end, 0, 0, allow))
    packed = b"".join(struct.pack("=HBBI", *line) for line in program)
    code = ctypes.create_string_buffer(packed, len(packed))
    filter_ = struct.pack("@HP", len(program), ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0))


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode() or None)
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None), target)


def _check(result: int, what: str = "") -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what or None)


if __name__ == "__main__":
    main()
