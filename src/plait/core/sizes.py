"""Sizes of memory as people write them: `19.66GiB`, `512 MiB`, `22GB`."""

import re

from plait.core.errors import ConfigError

KIB, MIB, GIB, TIB = (2**power for power in (10, 20, 30, 40))

_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": TIB} | {
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Return a size in whole bytes; KiB and its kin are powers of 1024, kB and its of 1000.

    Raises: ConfigError for what is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"{text!r} is no size; write a number and a unit, such as 19.66GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_bytes(num_bytes: int) -> str:
    """Return a size in the largest unit of 1024 that leaves at least one of it, four digits."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.4g} {name}"
    return f"{num_bytes} B"
