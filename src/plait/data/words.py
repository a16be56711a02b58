"""Words in any script, without dictionaries.

Words are what blanks separate. Chinese, Japanese, Thai, Lao, Khmer and Burmese put no blanks
between words; there every letter counts as a word of its own, which is enough for counting and
n-grams, and not meant for linguistics.
"""

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_HAS_UNSPACED = regex.compile(rf"[{_UNSPACED}]")
_WORD = regex.compile(rf"(?V1)[{_UNSPACED}]|[\S--[{_UNSPACED}]]+")


def split_words(text: str) -> list[str]:
    """Return the words of a text in order."""
    if text.isascii() or not _HAS_UNSPACED.search(text):
        return text.split()
    return _WORD.findall(text)
