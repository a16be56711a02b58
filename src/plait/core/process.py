"""How the libraries under torch behave in a process of ours; none of it changes a number."""

import os

_DEFAULTS = {
    # Waiting threads sleep instead of spinning: beside other work, spinning costs 20x the speed.
    "OMP_WAIT_POLICY": "PASSIVE",
    # oneDNN and the layer that torch puts on it each keep a compiled product per shape, 1,024 of
    # them and 0.3 MiB each. Prompts of every length make new shapes, so a server would grow by
    # 0.8 GiB; what a decode step and usual batch sizes need is far less.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
}


def set_library_defaults() -> None:
    """Set what the environment leaves open; each is read once, at the latest when torch first
    multiplies, so this comes before torch is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
