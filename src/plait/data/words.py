"""Words in any script, without dictionaries.

Words are what blanks separate. Chinese, Japanese, Thai, Lao, Khmer and Burmese put no blanks
between words; there every letter counts as a word of its own, which is enough for counting and
n-grams, and not meant for linguistics.
"""

import regex
from datatrove.utils.word_tokenizers import WordTokenizer

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"(?V1)[{_UNSPACED}]|[\S--[{_UNSPACED}]]+")


class ScriptWords(WordTokenizer):
    """Split by blanks, and letter by letter where the script has none; for datatrove's blocks."""

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words of a text in order."""
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Return the lines: no block that plait uses asks for sentences."""
        return [line for line in text.splitlines() if line.strip()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return the extent of each line."""
        return [match.span() for match in regex.finditer(r"[^\n]+", text)]


WORDS = ScriptWords()
