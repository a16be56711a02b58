"""Pages of the web: address, text, language, heuristic rules.

Text comes out of HTML by jusText where it has a stop list for the page's language and by
resiliparse elsewhere, or by resiliparse alone (`extractor`). Markdown and plain text go the same
way.
"""

import functools
from collections.abc import Sequence
from typing import Any

from datatrove.data import Document

from plait.data.curate_settings import CategorySettings
from plait.data.extract import extraction_step
from plait.data.heuristics import heuristics_step
from plait.data.language import language_step
from plait.data.steps import Step, Task, per_document


def steps(category: CategorySettings) -> Sequence[Step]:
    """Return the steps from raw page to judged text."""
    return [
        *([per_document("url", judge_address)] if category.url_lists else []),
        extraction_step(category),
        language_step(category),
        heuristics_step(category),
    ]


def late_steps(category: CategorySettings) -> Sequence[Step]:
    """Return nothing: all is judged before deduplication."""
    return []


def judge_address(document: Document, task: Task) -> str | None:
    """Drop pages of unwanted sites: `url_domain`, `url_hard_blacklisted`, ...

    Only http addresses are judged; datatrove carries the lists.
    """
    if not document.metadata["url"].startswith(("http://", "https://")):
        return None
    verdict = _url_filter().filter(document)
    return None if verdict is True else f"url_{verdict[1]}"


@functools.cache
def _url_filter() -> Any:
    import tldextract
    from datatrove.pipeline.filters import URLFilter

    block = URLFilter()
    # The list of public suffixes that comes with the package: no request at run time.
    block.tldextractor = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    return block
