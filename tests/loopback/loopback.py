"""Tests reach nothing but this machine: other addresses and names are refused, in words.

An audit hook sees every connection and look-up that Python's own sockets make, whoever asks, and
cannot be taken out again. Refusals are noted in a file as well, because a library that falls back
to something else swallows the error: the test that was running fails at its end (`conftest.py`).
Subprocesses in Python inherit the hook through `sitecustomize.py`, which this folder on PYTHONPATH
makes them import. Other programs are not watched; `unshare --net` runs a suite without any network.
"""

import ipaddress
import os
import socket
import sys
from pathlib import Path

REFUSALS_FILE = "PLAIT_TEST_REFUSALS"
"""Environment variable: the file that refusals of this process and its children go to."""


class NotLoopback(OSError):
    """A test wanted to leave the machine."""


def install() -> None:
    """Refuse everything but this machine from here on, in this process."""
    if not getattr(sys, "_loopback_only", False):
        sys._loopback_only = True  # pyright: ignore[reportAttributeAccessIssue]
        sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple) -> None:
    if event == "socket.connect":
        opened, address = arguments
        # A datagram socket that connects sends nothing: it is how programs find their own address.
        if opened.type != socket.SOCK_DGRAM:
            _check("connect to", address)
    elif event == "socket.sendto":
        _check("send to", arguments[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        _check("look up", (arguments[0],))


def _check(what: str, address: object) -> None:
    host = address[0] if isinstance(address, tuple) and address else None
    if isinstance(host, bytes):
        host = host.decode()
    if isinstance(host, str) and not _is_here(host):
        refusal = f"a test wanted to {what} {host}: tests reach only loopback (tests/loopback)"
        if note := os.environ.get(REFUSALS_FILE):
            with Path(note).open("a") as file:
                file.write(f"{refusal}\n")
        raise NotLoopback(refusal)


def _is_here(host: str) -> bool:
    if host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified or _is_own(address)


def _is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """True for an address of this machine's own network cards: no other can be bound to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((str(address), 0))
        except OSError:
            return False
    return True
