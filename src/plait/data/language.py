"""Which of the 16 languages a text is in, and whether it is one of them at all.

py3langid scores 97 languages. Restricted to ours it is right 99.9 % of the time on text in them but
cannot say "none": a second, unrestricted vote must agree.
"""

import functools
from typing import NamedTuple

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from plait.data.curate_settings import LANGUAGES, CategorySettings

_SAMPLE_CHARACTERS = 700


class Verdict(NamedTuple):
    """What language a text is in."""

    code: str
    """The likeliest of the 16."""
    score: float
    """Its probability among the 16, in [0, 1]."""
    vote: str
    """The likeliest of all 97."""


def identify(text: str) -> Verdict:
    """Identify the language of a text from its start, middle and end."""
    ranks = _identifier().rank(_sample(text))
    ours = [(code, float(p)) for code, p in ranks if code in LANGUAGES]
    total = sum(p for _, p in ours)
    code, best = ours[0]
    return Verdict(code, best / total if total > 0 else 0.0, ranks[0][0])


class LanguageFilter(BaseFilter):
    """Notes language and score; drops what a category does not want.

    Reasons: `unlisted_language` (the free vote is for another one), `unsure_language`,
    `other_language` (not one the category asks for).
    """

    name = "language"

    def __init__(
        self, categories: dict[str, CategorySettings], exclusion_writer: DiskWriter | None = None
    ) -> None:
        super().__init__(exclusion_writer)  # pyright: ignore[reportArgumentType]
        self.categories = categories

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Identify a document's language and judge it."""
        category = self.categories[doc.metadata["category"]]
        if category.content == "code":
            return True
        verdict = identify(doc.text)
        doc.metadata["language"] = verdict.code
        doc.metadata["language_score"] = round(verdict.score, 4)
        if verdict.vote != verdict.code:
            return False, "unlisted_language"
        if verdict.score < category.min_language_score:
            return False, "unsure_language"
        return verdict.code in category.languages or (False, "other_language")


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _sample(text: str) -> str:
    """Return at most three stretches of a long text: its start alone may be a title page."""
    if len(text) <= 3 * _SAMPLE_CHARACTERS:
        return text
    middle = (len(text) - _SAMPLE_CHARACTERS) // 2
    return "\n".join(
        (
            text[:_SAMPLE_CHARACTERS],
            text[middle : middle + _SAMPLE_CHARACTERS],
            text[-_SAMPLE_CHARACTERS:],
        )
    )
