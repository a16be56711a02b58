"""How the libraries under torch behave in a process of ours; none of it changes a number."""

import ctypes
import os

_DEFAULTS = {
    # Waiting threads soon sleep: beside other work, spinning on costs 10x the speed and more; but a
    # server that sleeps at once decodes at two thirds of its speed. The count is GNU's own; on a
    # machine that does nothing else, 10,000 gives up to 1.25x.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "3000",
    # oneDNN and the layer that torch puts on it each keep a compiled product per shape, 1,024 of
    # them and 0.3 MiB each. Prompts of every length make new shapes, so a server would grow by
    # 0.8 GiB; what a decode step and usual batch sizes need is far less.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
}

# glibc's malloc, by the variable that sets the same and the parameter's number in malloc.h. What a
# forward frees, the next one takes again; but a thread that is not the main one has an arena that
# gives memory back to the system, so the engine's thread of a server had 100,000 pages cleared anew
# for 16 answers of 40 tokens.
_MALLOC = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_TRIM_THRESHOLD_": (-1, 256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * 2**20),
}


def set_library_defaults() -> None:
    """Set what the environment leaves open; each is read once, at the latest when torch first
    multiplies, so this comes before torch is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only GNU's C library has one
    for name, (parameter, value) in _MALLOC.items():
        if mallopt is not None and name not in os.environ:
            mallopt(parameter, value)
