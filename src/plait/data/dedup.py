"""Exact and near duplicates over all categories, by datatrove's blocks and MinHash of our own.

    exact   hash of the normalised text -> equal hashes -> all but one dropped as `exact_duplicate`
    near    MinHash signatures -> bands in common -> clusters -> all but one `near_duplicate`

Each arrow is a pass over the tasks' files; positions in these files are the documents' numbers. A
document's place in the near pass is 12 bytes a band: 240 bytes in 20 bands, 2.4 GB on disk for
ten million documents. Signatures are sorted task by task, and a band is compared range by range
of its hashes, so a task of either pass holds its own shard or `_RANGE_RECORDS` records and no
more, however many documents there are. The clustering task holds the documents that have a
duplicate.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupCluster,
    MinhashDedupFilter,
)

from plait.core.artifact import atomic_file
from plait.data.curate_io import DropWriter
from plait.data.curate_settings import DedupSettings
from plait.data.minhash import Family, signature

_BLANKS = re.compile(r"\s+")
_RECORD = np.dtype([("hash", "<u8"), ("document", "<u4")])
_PAIR = np.dtype([("file", "<u4"), ("document", "<u4")])
_RANGE_RECORDS = 1 << 20
_HASH_BITS = 61


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


class NearSignatures(PipelineStep):
    """Notes each document's MinHash signature, the task's bands sorted; ends its pipeline."""

    type = "🫂 - DEDUP"
    name = "MinHash signatures"

    def __init__(self, work: Path, settings: DedupSettings) -> None:
        super().__init__()
        self.folder = work / "near_signatures"
        self.family = _family(settings)

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        """Write `<task>.npy`, an array (bands, documents) of records."""
        assert data is not None
        # A document without a band is its own: numbers follow the file, so it stays a gap.
        rows = [
            (number, bands)
            for number, document in enumerate(data)
            if (bands := signature(normalised(document), self.family)).size
        ]
        records = np.empty((self.family.bands, len(rows)), _RECORD)
        for column, (number, bands) in enumerate(rows):
            records["hash"][:, column] = bands
            records["document"][:, column] = number
        for band in records:
            band.sort(order=["hash", "document"])
        with atomic_file(self.folder / f"{rank:05d}.npy") as path, path.open("wb") as file:
            np.save(file, records)


class FindNear(PipelineStep):
    """Finds documents that share a band; runs as one task per band."""

    type = "🫂 - DEDUP"
    name = "MinHash bands"

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.signatures, self.pairs = work / "near_signatures", work / "near_pairs"

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        """Write `<band>.dups`: pairs of (file, document), as datatrove's clustering reads them."""
        files = sorted(self.signatures.glob("*.npy"))
        numbers = [int(file.stem) for file in files]
        bands = [np.load(file, mmap_mode="r")[rank] for file in files]
        total = sum(band.size for band in bands)
        num_ranges = -(-total // _RANGE_RECORDS)
        cuts = [(i << _HASH_BITS) // max(num_ranges, 1) for i in range(num_ranges + 1)]
        with atomic_file(self.pairs / f"{rank:05d}.dups") as path, path.open("wb") as file:
            for low, high in itertools.pairwise(cuts):
                pairs = _equal_neighbours(bands, numbers, low, high)
                self.stat_update("pairs", value=pairs.shape[0])
                file.write(pairs.tobytes())


def _equal_neighbours(
    bands: list[np.ndarray], numbers: list[int], low: int, high: int
) -> np.ndarray:
    """Return pairs (n, 2) of documents with equal hashes in [low, high), each with the next."""
    hashes, places = [], []
    for band, number in zip(bands, numbers, strict=True):
        bounds = np.searchsorted(band["hash"], np.array([low, high], np.uint64))
        part = np.asarray(band[bounds[0] : bounds[1]])
        place = np.empty(part.size, _PAIR)
        place["file"], place["document"] = number, part["document"]
        hashes.append(part["hash"])
        places.append(place)
    keys = np.concatenate(hashes)
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    found = np.concatenate(places)[order]
    return np.stack([found[same], found[same + 1]], axis=1)


def cluster_near(work: Path, settings: DedupSettings) -> PipelineStep:
    """Join pairs into clusters and name all but one of each; runs as one task."""
    return MinhashDedupCluster(
        str(work / "near_pairs"),
        str(work / "near_duplicates"),
        config=MinhashConfig(num_buckets=settings.num_bands),
        lines_to_buffer=1000,
    )


def drop_near(work: Path, drops: DropWriter) -> PipelineStep:
    """Drop the documents that clustering named."""
    return MinhashDedupFilter(str(work / "near_duplicates"), drops)


def _exact_config() -> ExactDedupConfig:
    return ExactDedupConfig(content_getter=normalised)


def _family(settings: DedupSettings) -> Family:
    return Family(
        settings.ngram_characters, settings.num_bands, settings.hashes_per_band, settings.seed
    )
