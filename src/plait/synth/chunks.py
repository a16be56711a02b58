"""Texts cut to a number of tokens, between lines where that is possible."""

from collections.abc import Callable, Iterator

CountTokens = Callable[[str], int]


def estimate_tokens(text: str) -> int:
    """Guess the length of a text in tokens without a tokenizer: four bytes each."""
    return (len(text.encode()) + 3) // 4


def chunks(text: str, max_tokens: int, num_tokens: CountTokens) -> Iterator[str]:
    """Yield consecutive pieces of at most `max_tokens` tokens; together they are the text.

    Pieces end with lines; a line that is too long by itself is cut wherever it must be.
    """
    piece, size = [], 0
    for line in text.splitlines(keepends=True):
        for part in _short_parts(line, max_tokens, num_tokens):
            length = num_tokens(part)
            if piece and size + length > max_tokens:
                yield "".join(piece)
                piece, size = [], 0
            piece.append(part)
            size += length
    if piece:
        yield "".join(piece)


def _short_parts(line: str, max_tokens: int, num_tokens: CountTokens) -> Iterator[str]:
    if num_tokens(line) <= max_tokens or len(line) == 1:
        yield line
        return
    middle = len(line) // 2
    blank = line.rfind(" ", middle // 2, middle)
    middle = blank + 1 if blank >= 0 else middle
    yield from _short_parts(line[:middle], max_tokens, num_tokens)
    yield from _short_parts(line[middle:], max_tokens, num_tokens)
