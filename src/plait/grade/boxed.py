"""Find the last boxed answer of a text: what `\\boxed{...}` holds, braces inside it balanced."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def last_boxed(text: str) -> str | None:
    """Return the content of the last box that is closed, outer white space removed, or None."""
    for start in reversed([match.end() for match in _BOX.finditer(text)]):
        depth = 1
        for place in range(start, len(text)):
            escaped = place > 0 and text[place - 1] == "\\"
            if not escaped:
                depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start:place].strip()
    return None
