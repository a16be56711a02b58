"""From the bytes of an output to text that can be shown while it grows.

Three things are held back until they are certain: bytes of an unfinished character, white space
that may turn out to be the end (where text is stripped), and the beginning of a stop string. So the
pieces of a streamed text, joined, are the text of the finished completion, and no character changes
afterwards.
"""

import codecs
from collections.abc import Sequence


class TextSection:
    """Decodes one section of an output piece by piece.

    Bytes that cannot be UTF-8 become U+FFFD; a character that never ends is dropped. With `strip`,
    the pieces join to the stripped text.
    """

    def __init__(self, *, strip: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = strip
        self._begun = False
        self._space = ""

    def feed(self, data: bytes) -> str:
        """Take the next bytes and return the text that is now certain."""
        text = self._decoder.decode(data)
        if not self._strip:
            return text
        text = self._space + text
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        certain = text.rstrip()
        self._space = text[len(certain) :]
        return certain


def decode(data: bytes, *, strip: bool = False) -> str:
    """Return the text of whole bytes as `TextSection` would give it."""
    return TextSection(strip=strip).feed(data)


def find_first(data: bytearray, texts: Sequence[bytes], searched: int, start: int) -> int | None:
    """Return where the first of `texts` begins at or after `start`, or None.

    Nothing that ends before `searched` is looked at again.
    """
    found = [data.find(text, max(start, searched - len(text) + 1)) for text in texts]
    return min((position for position in found if position >= 0), default=None)


def num_held_bytes(data: bytearray, texts: Sequence[bytes]) -> int:
    """Return the length of the longest end of `data` that is a beginning of one of `texts`."""
    longest = max(map(len, texts), default=1) - 1
    tail = bytes(data[-longest:]) if longest else b""
    beginnings = {text[0] for text in texts}
    for start, byte in enumerate(tail):
        if byte in beginnings:
            end = tail[start:]
            if any(len(text) > len(end) and text.startswith(end) for text in texts):
                return len(end)
    return 0
