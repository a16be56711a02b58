"""How much the kernels work on at once, measured: what bounds their temporary memory.

`model/count` derives from these numbers what a prefill takes, so they stand in one place.
"""

TILE_TOKENS = 1024
"""Tokens between two linear maps at once, where nothing is kept for backward: what lies between
stays in the last cache, and in memory that the allocator has at hand."""

SCAN_BLOCKS: dict[str, tuple[int, int | None]] = {"cpu": (32, 256), "cuda": (128, None)}
"""Tokens of a chunk of the scan and of a block of chunks by device type; None is the whole
batch."""

QUERY_TILE = 256
"""Most new tokens that attend to a cache at once."""

ATTENTION_VALUES = 1 << 24
"""Most keys (and as many values) that are brought together at once over a paged cache, and most
entries of the mask over it, unless a single head or token needs more."""
