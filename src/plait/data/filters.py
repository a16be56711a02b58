"""Heuristic rules that keep or drop a document, each drop with a reason.

Prose goes through datatrove's Gopher quality and repetition blocks with the category's limits for
the document's language; their reasons keep their names (`gopher_short_doc`, `dup_line_frac`, ...).
Code has rules of its own. Limits are settings; nothing here is tuned to a corpus.
"""

from collections.abc import Sequence

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from plait.data.curate_settings import CategorySettings, CodeRules, ProseRules
from plait.data.words import WORDS

# Every letter is a word there: a mean length of words says nothing, and what takes n words
# elsewhere takes about 2 n.
UNSPACED_LANGUAGES = ("zh", "ja", "th")


class HeuristicFilter(BaseFilter):
    """Applies the rules of a document's category and language."""

    name = "heuristics"

    def __init__(
        self, categories: dict[str, CategorySettings], exclusion_writer: DiskWriter | None = None
    ) -> None:
        super().__init__(exclusion_writer)  # pyright: ignore[reportArgumentType]
        self.categories = categories
        self._blocks: dict[tuple[str, str], Sequence[BaseFilter]] = {}

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Judge a document."""
        name, language = doc.metadata["category"], doc.metadata["language"]
        category = self.categories[name]
        if category.content == "code":
            reason = code_fault(doc.text, category.code)
            return reason is None or (False, reason)
        if (name, language) not in self._blocks:
            rules = category.prose_for(language)
            self._blocks[name, language] = prose_blocks(rules, language)
        for block in self._blocks[name, language]:
            keep, reason = get_filter_result(block.filter(doc))
            if not keep:
                return False, reason or "unnamed"
        return True


def prose_blocks(rules: ProseRules, language: str) -> Sequence[BaseFilter]:
    """Build datatrove's blocks for the rules of one language."""
    unspaced = language in UNSPACED_LANGUAGES
    scale = 2 if unspaced else 1
    top = tuple((scale * n, share) for n, share in sorted(rules.max_top_ngram.items()))
    repeated = tuple((scale * n, share) for n, share in sorted(rules.max_repeated_ngrams.items()))
    return [
        GopherQualityFilter(
            min_doc_words=rules.min_words,
            max_doc_words=rules.max_words,
            min_avg_word_length=0 if unspaced else rules.min_mean_word_characters,  # pyright: ignore[reportArgumentType]
            max_avg_word_length=rules.max_mean_word_characters,  # pyright: ignore[reportArgumentType]
            max_symbol_word_ratio=rules.max_symbols_per_word,
            max_bullet_lines_ratio=rules.max_bullet_lines,
            max_ellipsis_lines_ratio=rules.max_ellipsis_lines,
            max_non_alpha_words_ratio=rules.min_alphabetic_words,
            min_stop_words=None,
            language=WORDS,  # pyright: ignore[reportArgumentType]
        ),
        GopherRepetitionFilter(
            dup_line_frac=rules.max_duplicate_lines,
            dup_para_frac=rules.max_duplicate_paragraphs,
            dup_line_char_frac=rules.max_duplicate_line_characters,
            dup_para_char_frac=rules.max_duplicate_paragraph_characters,
            top_n_grams=top,  # pyright: ignore[reportArgumentType]
            dup_n_grams=repeated,  # pyright: ignore[reportArgumentType]
            language=WORDS,  # pyright: ignore[reportArgumentType]
        ),
    ]


def code_fault(text: str, rules: CodeRules) -> str | None:
    """Return why source code is not kept, or None."""
    lines = text.split("\n")
    if len(text) < rules.min_characters:
        return "code_too_short"
    if len(text) > rules.max_characters:
        return "code_too_long"
    if max(map(len, lines)) > rules.max_line_characters:
        return "code_long_line"
    if len(text) / len(lines) > rules.max_mean_line_characters:
        return "code_long_lines"
    if sum(map(str.isalnum, text)) < rules.min_alphanumeric * len(text):
        return "code_few_letters"
    return None
