"""Exact and near duplicates over all categories, by datatrove's blocks.

    exact   hash of the normalised text -> equal hashes -> all but one dropped as `exact_duplicate`
    near    MinHash signatures -> bands in common -> clusters -> all but one `near_duplicate`

Each arrow is a pass over the tasks' files; positions in these files are the documents' numbers.
"""

import re
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.text import TextNormConfig

from plait.data.curate_io import DropWriter
from plait.data.curate_settings import DedupSettings
from plait.data.words import WORDS

_BLANKS = re.compile(r"\s+")


def normalised(doc: Document) -> str:
    """Return a document's text in lower case with single blanks: what must be equal."""
    return _BLANKS.sub(" ", doc.text.lower()).strip()


def exact_signatures(work: Path) -> PipelineStep:
    """Note each document's hash (xxhash, 64 bits); ends its pipeline."""
    return ExactDedupSignature(str(work / "exact_signatures"), _exact_config())


def find_exact(work: Path) -> PipelineStep:
    """Find equal hashes; runs as one task."""
    return ExactFindDedups(
        str(work / "exact_signatures"), str(work / "exact_duplicates"), _exact_config()
    )


def drop_exact(work: Path, drops: DropWriter) -> PipelineStep:
    """Drop the documents that an earlier pass found to be copies."""
    return ExactDedupFilter(str(work / "exact_duplicates"), _exact_config(), drops)


def near_signatures(work: Path, settings: DedupSettings) -> PipelineStep:
    """Note each document's MinHash signature; ends its pipeline."""
    return MinhashDedupSignature(
        str(work / "near_signatures"),
        _near_config(settings),
        language=WORDS,  # pyright: ignore[reportArgumentType]
    )


def find_near(work: Path, settings: DedupSettings) -> PipelineStep:
    """Find documents that share a band; runs as one task per band."""
    return MinhashDedupBuckets(
        str(work / "near_signatures"), str(work / "near_pairs"), config=_near_config(settings)
    )


def cluster_near(work: Path, settings: DedupSettings) -> PipelineStep:
    """Join pairs into clusters and name all but one of each; runs as one task."""
    return MinhashDedupCluster(
        str(work / "near_pairs"), str(work / "near_duplicates"), config=_near_config(settings)
    )


def drop_near(work: Path, drops: DropWriter) -> PipelineStep:
    """Drop the documents that clustering named."""
    return MinhashDedupFilter(str(work / "near_duplicates"), drops)


def _exact_config() -> ExactDedupConfig:
    return ExactDedupConfig(content_getter=normalised)


def _near_config(settings: DedupSettings) -> MinhashConfig:
    return MinhashConfig(
        n_grams=settings.ngram_words,
        num_buckets=settings.num_bands,
        hashes_per_bucket=settings.hashes_per_band,
        seed=settings.seed,
        # Exercises that differ in their numbers only are different exercises.
        norm_config=TextNormConfig(norm_numbers=False),
    )
