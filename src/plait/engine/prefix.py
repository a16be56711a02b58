"""What was read before and need not be read again.

A recurrent state cannot be cut back, and storing one costs as much as the keys and values of some
thousand tokens. So states are stored only where another prompt is likely to go on, and a stored
prefix is one thing: a state and the blocks of keys and values that belong to it. The places,
rounded down to whole blocks:

    behind the first message            system prompt and tools, shared by many conversations
    before the last message header      the next turn repeats all up to there; what follows, the
                                        trace above all, it does not repeat
    where two prompts parted            the second time that a prefix is seen without a state

Where messages begin is known from special tokens, which only a chat template can write. Prefixes
are recognised by a chain of hashes, one per block. Least recently used goes first, when a slot for
a state or a block of keys and values is needed.

Source: the choice of places follows Marconi (arXiv 2411.19379).
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from plait.engine.blocks import BlockPool
from plait.model.state import BLOCK_TOKENS

_REMEMBERED_PREFIXES = 2**16


class StoredPrefix(NamedTuple):
    """A prefix that can be gone on from."""

    slot: int
    """Where its state is stored."""
    blocks: list[int]
    """Its keys and values."""

    @property
    def num_tokens(self) -> int:
        """Length of the prefix."""
        return len(self.blocks) * BLOCK_TOKENS


def hash_chain(token_ids: Sequence[int]) -> list[bytes]:
    """Return a hash per whole block, of all tokens up to its end; the last token is left out, for
    something must be read to go on."""
    chain, before = [], b""
    for start in range(0, len(token_ids) - BLOCK_TOKENS, BLOCK_TOKENS):
        block = array("q", token_ids[start : start + BLOCK_TOKENS])
        before = blake2b(before + block.tobytes(), digest_size=16).digest()
        chain.append(before)
    return chain


def useful_places(special_positions: Sequence[int]) -> list[int]:
    """Return token counts, multiples of a block, at which the state of a prompt is worth storing.

    special_positions: where the special tokens of the prompt are, ascending.
    """
    special = {-1, *special_positions}
    # A run of special tokens at the beginning, such as a beginning of text, is no message.
    inner = [position for position in special_positions if position - 1 not in special]
    places = {position // BLOCK_TOKENS * BLOCK_TOKENS for position in (*inner[:1], *inner[-1:])}
    return sorted(places - {0})


class PrefixCache:
    """Stored prefixes by hash, with `num_slots` places for states."""

    def __init__(self, num_slots: int, blocks: BlockPool) -> None:
        self.num_slots = num_slots
        self._blocks = blocks
        self._free = list(range(num_slots))
        self._stored: OrderedDict[bytes, StoredPrefix] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    @property
    def num_stored(self) -> int:
        """Prefixes held now."""
        return len(self._stored)

    def find(self, chain: Sequence[bytes]) -> StoredPrefix | None:
        """Return the longest stored prefix of a prompt, which then was used last."""
        for key in reversed(chain):
            if key in self._stored:
                self._stored.move_to_end(key)
                return self._stored[key]
        return None

    def mark_seen(self, chain: Sequence[bytes]) -> int:
        """Return how many tokens of a prompt were seen in earlier ones, and remember it."""
        num_seen = 0
        for index, key in enumerate(chain):
            if key in self._seen:
                num_seen = index + 1
                self._seen.move_to_end(key)
            else:
                self._seen[key] = None
        while len(self._seen) > _REMEMBERED_PREFIXES:
            self._seen.popitem(last=False)
        return num_seen * BLOCK_TOKENS

    def store(self, key: bytes, blocks: Sequence[int]) -> int | None:
        """Take a prefix; return the slot that its state must be copied to, or None if it is there
        already or there are no slots."""
        if key in self._stored or not self.num_slots:
            return None
        if not self._free:
            self.drop_oldest()
        self._stored[key] = StoredPrefix(self._free.pop(), list(blocks))
        self._blocks.share(blocks)
        return self._stored[key].slot

    def drop_oldest(self) -> bool:
        """Give up the prefix that was not used for longest; False if there is none."""
        if not self._stored:
            return False
        _, prefix = self._stored.popitem(last=False)
        self._free.append(prefix.slot)
        self._blocks.release(prefix.blocks)
        return True

    def clear(self) -> None:
        """Forget everything, because the model has changed."""
        while self.drop_oldest():
            pass
        self._seen.clear()

    def block_owners(self) -> list[list[int]]:
        """Return the blocks of every stored prefix; for `BlockPool.check`."""
        return [prefix.blocks for prefix in self._stored.values()]

    def check(self) -> None:
        """Raise AssertionError if slots are lost or used twice; for tests."""
        slots = self._free + [prefix.slot for prefix in self._stored.values()]
        assert sorted(slots) == list(range(self.num_slots))
