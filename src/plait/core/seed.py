"""Seeds that never collide: hashed from a path of names, not added up.

`seed + index` makes item 1 of seed 0 equal item 0 of seed 1; hashing (seed, stage, index) does not.
"""

import hashlib


def mix_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on their order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
