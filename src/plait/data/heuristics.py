"""Heuristic rules that keep or drop prose, each drop with a reason.

The rules are Gopher's (arXiv 2112.11446, table A1) with limits from the settings, by category and
language; nothing here is tuned to a corpus. They decide as datatrove's Gopher blocks do, under
the same reasons, in a fifth of the time: words are split once, and repeated n-grams are counted
on arrays first, one by one only where a limit may be passed. A test compares the two on real
text.
"""

import re
from collections.abc import Sequence

import numpy as np
from datatrove.data import Document
from datatrove.utils.text import PUNCTUATION_SET

from plait.data.curate_settings import CategorySettings, ProseRules
from plait.data.steps import Step, Task, per_document
from plait.data.words import split_words

# Every letter is a word there: a mean length of words says nothing, and what takes n words
# elsewhere takes about 2 n.
UNSPACED_LANGUAGES = ("zh", "ja", "th")

_PUNCTUATION = frozenset(PUNCTUATION_SET)
_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_MIX = np.uint64(0x9E3779B97F4A7C15)


def heuristics_step(category: CategorySettings) -> Step:
    """Judge prose by the category's rules for its language."""
    by_language: dict[str, ProseRules] = {}

    def judge(document: Document, task: Task) -> str | None:
        language = document.metadata["language"]
        if language not in by_language:
            by_language[language] = category.prose_for(language)
        return prose_fault(document.text, by_language[language], language)

    return per_document("heuristics", judge)


def prose_fault(text: str, rules: ProseRules, language: str) -> str | None:
    """Return why a text is not kept, or None."""
    words = split_words(text)
    return (
        _quality_fault(text, words, rules, language)
        or _repeated_blocks(text, rules)
        or _repeated_words(text, words, rules, 2 if language in UNSPACED_LANGUAGES else 1)
    )


def _quality_fault(text: str, words: Sequence[str], rules: ProseRules, language: str) -> str | None:
    lengths = [len(word) for word in words if not _PUNCTUATION.issuperset(word)]
    if len(lengths) < rules.min_words:
        return "gopher_short_doc"
    if len(lengths) > rules.max_words:
        return "gopher_long_doc"
    mean = sum(lengths) / len(lengths)
    if language not in UNSPACED_LANGUAGES and mean < rules.min_mean_word_characters:
        return "gopher_below_avg_threshold"
    if mean > rules.max_mean_word_characters:
        return "gopher_above_avg_threshold"
    if text.count("#") > rules.max_symbols_per_word * len(words):
        return "gopher_too_many_hashes"
    if text.count("...") + text.count("…") > rules.max_symbols_per_word * len(words):
        return "gopher_too_many_ellipsis"
    lines = text.splitlines()
    bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
    if bullets > rules.max_bullet_lines * len(lines):
        return "gopher_too_many_bullets"
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    if ellipses > rules.max_ellipsis_lines * len(lines):
        return "gopher_too_many_end_ellipsis"
    alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words)
    if alphabetic < rules.min_alphabetic_words * len(words):
        return "gopher_below_alpha_threshold"
    return None


def _repeated_blocks(text: str, rules: ProseRules) -> str | None:
    paragraphs = _PARAGRAPHS.split(text.strip())
    count, characters = _duplicates(paragraphs)
    if count > rules.max_duplicate_paragraphs * len(paragraphs):
        return "dup_para_frac"
    if characters > rules.max_duplicate_paragraph_characters * len(text):
        return "dup_para_char_frac"
    lines = _LINES.split(text)
    count, characters = _duplicates(lines)
    if count > rules.max_duplicate_lines * len(lines):
        return "dup_line_frac"
    if characters > rules.max_duplicate_line_characters * len(text):
        return "dup_line_char_frac"
    return None


def _duplicates(items: Sequence[str]) -> tuple[int, int]:
    """Count items that were said before, and their characters."""
    unique = set(items)
    return len(items) - len(unique), sum(map(len, items)) - sum(map(len, unique))


def _repeated_words(text: str, words: Sequence[str], rules: ProseRules, scale: int) -> str | None:
    """Judge repeated n-grams; `scale` n words stand for n where a letter counts as a word."""
    grams = _Grams(words)
    for n, share in sorted(rules.max_top_ngram.items()):
        if grams.top_characters(scale * n) > share * len(text):
            return f"top_{scale * n}_gram"
    for n, share in sorted(rules.max_repeated_ngrams.items()):
        if grams.repeats_more(scale * n, share * len(text)):
            return f"duplicated_{scale * n}_n_grams"
    return None


class _Grams:
    """The n-grams of a list of words, as one number each."""

    def __init__(self, words: Sequence[str]) -> None:
        number_of: dict[str, int] = {}
        numbers = [number_of.setdefault(word, len(number_of)) for word in words]
        self.words = (np.array(numbers, np.uint64) + np.uint64(1)) * _MIX
        self.words ^= self.words >> np.uint64(29)
        self.ends = np.concatenate([[0], np.cumsum([len(word) for word in words], dtype=np.int64)])
        self.built, self.keys = 1, self.words

    def top_characters(self, n: int) -> int:
        """Return the length of the most frequent n-gram, blanks included, times its frequency."""
        keys = self._keys(n)
        if not keys.size:
            return 0
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        count = counts.max()
        start = first[counts == count].min()
        return int(count * (self.ends[start + n] - self.ends[start] + n - 1))

    def repeats_more(self, n: int, limit: float) -> bool:
        """Say whether n-grams that were said before hold more characters than `limit`.

        Read from the start: after a repeated n-gram reading goes on behind it.
        """
        keys = self._keys(n)
        if not keys.size:
            return False
        repeated = np.ones(keys.size, bool)
        repeated[np.unique(keys, return_index=True)[1]] = False
        starts = np.flatnonzero(repeated)
        if not starts.size:
            return False
        # No reading finds more than all words that lie in any repeated n-gram.
        covered = np.zeros(self.words.size + 1, np.int64)
        np.add.at(covered, starts, 1)
        np.add.at(covered, starts + n, -1)
        lengths = np.diff(self.ends)
        if lengths[np.cumsum(covered[:-1]) > 0].sum() <= limit:
            return False
        return self._read(keys.tolist(), n) > limit

    def _read(self, keys: Sequence[int], n: int) -> int:
        seen: set[int] = set()
        characters = place = 0
        while place < len(keys):
            if keys[place] in seen:
                characters += int(self.ends[place + n] - self.ends[place])
                place += n
            else:
                seen.add(keys[place])
                place += 1
        return characters

    def _keys(self, n: int) -> np.ndarray:
        if n < self.built:
            self.built, self.keys = 1, self.words
        for size in range(self.built + 1, n + 1):
            length = max(0, self.words.size - size + 1)
            self.keys = self.keys[:length] * _MIX + self.words[size - 1 : size - 1 + length]
        self.built = max(n, 1)
        return self.keys
