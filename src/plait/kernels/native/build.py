"""Compiles the native kernels: `python -m plait.kernels.native.build`, and on installing plait.

A few seconds of the system's C++ compiler, once; no headers but its own. The name of the library
says for which kind of processor it is and from which sources, so none is ever loaded that the
processor cannot run or that the Python around it does not fit. This file needs no installed
package, for the build hook runs it where there is none.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

# kinds of x86 processor, best first: flags of /proc/cpuinfo that it needs, and of the compiler
_X86 = {
    "avx512bf16": (
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx2", "fma", "bmi2"},
        ["-march=x86-64-v4", "-mavx512bf16"],
    ),
    "avx512": (
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"},
        ["-march=x86-64-v4"],
    ),
    "avx2": ({"avx2", "fma", "bmi2"}, ["-march=x86-64-v3"]),
}
_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC"]


def processor() -> str | None:
    """Return this machine's kind of processor, or None if the kernels are not written for it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    return next((kind for kind, (needed, _) in _X86.items() if needed <= flags), None)


def library_path(kind: str) -> Path:
    """Return where the library for a kind of processor lies, whether or not it has been built."""
    digest = hashlib.sha256()
    for source in _sources("*.h", "*.cpp"):
        digest.update(source.read_bytes())
    return HERE / f"plait-{kind}-{digest.hexdigest()[:12]}.so"


def build() -> str:
    """Build the library for this machine unless it is there; say in a line what was done.

    Raises: RuntimeError if the compiler refuses.
    """
    kind, compiler = processor(), os.environ.get("CXX") or "c++"
    if kind is None:
        return f"no native kernels: they are not written for {platform.machine()} as found here"
    library = library_path(kind)
    if library.exists():
        return f"native kernels are up to date: {library}"
    if shutil.which(compiler) is None:
        return f"no native kernels: there is no C++ compiler {compiler!r} (plait works, slower)"
    scratch = library.with_suffix(f".{os.getpid()}")
    command = [compiler, *_FLAGS, *_X86[kind][1], "-o", str(scratch), *map(str, _sources("*.cpp"))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    for old in HERE.glob(f"plait-{kind}-*.so"):
        old.unlink()
    scratch.rename(library)
    return f"built native kernels: {library}"


def _sources(*patterns: str) -> list[Path]:
    return sorted(source for pattern in patterns for source in HERE.glob(pattern))


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
