"""A long text in pieces of at most so many tokens, broken where it hurts least."""

import re
from collections.abc import Iterator

_PIECES = re.compile(r"\s*(?:\w{1,4}|[^\w\s])|\s+")
# Between paragraphs if they fit, else between lines, else between words, else anywhere.
_BREAKS = (r"(?<=\n\n)(?!\n)", r"(?<=\n)", r"(?<=[ \t])")


def count_tokens(text: str) -> int:
    """Estimate the tokens of a text without a tokenizer, rather too many than too few.

    Every symbol is one, every word one for each four letters begun.
    """
    return len(re.findall(r"\w{1,4}|[^\w\s]", text))


def chunks(text: str, max_tokens: int) -> list[str]:
    """Cut a text into chunks of at most `max_tokens` each; joined they are the text."""
    parts: list[str] = []
    filled = 0
    for part, size in _parts(text, max_tokens, 0):
        if not parts or filled + size > max_tokens:
            parts.append(part)
            filled = size
        else:
            parts[-1] += part
            filled += size
    return parts


def _parts(text: str, max_tokens: int, level: int) -> Iterator[tuple[str, int]]:
    for part in re.split(_BREAKS[level], text):
        size = count_tokens(part)
        if size <= max_tokens:
            if part:
                yield part, size
        elif level + 1 < len(_BREAKS):
            yield from _parts(part, max_tokens, level + 1)
        else:
            pieces = _PIECES.findall(part)
            for start in range(0, len(pieces), max_tokens):
                piece = "".join(pieces[start : start + max_tokens])
                yield piece, count_tokens(piece)
