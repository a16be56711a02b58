"""The most memory that a part of a process's life took."""

import resource
import sys
from pathlib import Path

from plait.core.sizes import GIB


class MemoryPeak:
    """The largest resident size of this process, or of a child of it, since this was made.

    The system tells the peak of a process's whole life. Linux can forget it, except that of
    children: of those only one counts that was larger than every child before.
    """

    def __init__(self) -> None:
        self.is_exact = _forget()
        """False where the peak is that of the whole life of the process."""
        self._children = _peak(resource.RUSAGE_CHILDREN)

    def gib(self) -> float:
        """Return the peak until now."""
        if not self.is_exact:
            most = max(_peak(resource.RUSAGE_SELF), _peak(resource.RUSAGE_CHILDREN))
            return most / GIB
        children = _peak(resource.RUSAGE_CHILDREN)
        return max(_own_peak(), children if children > self._children else 0) / GIB


def _forget() -> bool:
    """Set the peak of this process to its present size; False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _own_peak() > 0
    except OSError:
        return False


def _own_peak() -> int:
    """Return the bytes of this process's peak since `_forget`; 0 if the system does not tell."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _peak(who: int) -> int:
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
