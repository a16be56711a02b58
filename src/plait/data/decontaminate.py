"""Documents that hold a benchmark's question are dropped: told in the same words, or in others.

    words       a share of the question's n-grams stands in the document (`ngram_index`)
    likeness    a stretch of the document and a question have near sentence embeddings (`embed`);
                then a language model, the judge, says whether they are the same question; without
                a judge the likeness alone decides, from a higher limit

LLM-Decontaminator's method (arXiv 2311.04850), a document at a time: the few questions are the
index, so a corpus of any size streams past it. The same step serves curation (`late`) and the stage
`decontaminate`, for what was written or collected elsewhere.
"""

import functools
import hashlib
import importlib.resources
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plait.core.artifact import atomic_directory, disk_errors
from plait.core.progress import Progress
from plait.data.benchmarks import Item
from plait.data.chunks import chunks, count_tokens
from plait.data.embed import embed_texts
from plait.data.ngram_index import NgramIndex
from plait.data.quality_settings import DecontaminateSettings
from plait.data.steps import Ask, Step, Task

if TYPE_CHECKING:
    from datatrove.data import Document

STEP = "decontaminate"
FOUND = "contamination"
"""Metadata of a dropped document: what was found in it."""

_AT_ONCE = 64
_EMBEDDED_AT_ONCE = 256
_JOINED_TOKENS = 16
_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


class Near(NamedTuple):
    """A stretch of a document that is like a question."""

    similarity: float
    item: int
    stretch: str


class Index:
    """The questions, ready to be looked for."""

    def __init__(
        self,
        items: Sequence[Item],
        settings: DecontaminateSettings,
        words: NgramIndex,
        vectors: np.ndarray | None,
    ) -> None:
        self.items, self.settings, self.words, self.vectors = list(items), settings, words, vectors

    @classmethod
    def build(cls, items: Sequence[Item], settings: DecontaminateSettings) -> "Index":
        """Hash and embed the questions."""
        texts = [item.text for item in items]
        words = NgramIndex.build(texts, settings.ngram_words, settings.min_words)
        vectors = None
        if settings.embedding:
            with Progress("embed benchmarks", len(texts), "questions") as progress:
                parts = []
                for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
                    batch = texts[start : start + _EMBEDDED_AT_ONCE]
                    parts.append(embed_texts(batch, settings.embedding.model))
                    progress.advance(len(batch))
            vectors = np.concatenate(parts)
        return cls(items, settings, words, vectors)

    def write(self, folder: Path) -> None:
        """Write the index to `folder`, whole or not at all."""
        from safetensors.numpy import save_file

        tensors = {} if self.vectors is None else {"vectors": self.vectors}
        for n, (hashes, numbers) in self.words.tables.items():
            tensors |= {f"{n}.hashes": hashes, f"{n}.items": numbers}
        with atomic_directory(folder) as partial:
            with disk_errors(partial / "index.safetensors"):
                save_file(tensors, partial / "index.safetensors")
            (partial / "settings.json").write_text(self.settings.model_dump_json())
            (partial / "items.json").write_text(json.dumps(self.items, ensure_ascii=False))

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Read what `write` wrote."""
        from safetensors.numpy import load_file

        tensors = load_file(folder / "index.safetensors")
        settings = DecontaminateSettings.model_validate_json((folder / "settings.json").read_text())
        items = [Item(*row) for row in json.loads((folder / "items.json").read_text())]
        lengths = [int(name.partition(".")[0]) for name in tensors if name.endswith(".hashes")]
        tables = {n: (tensors[f"{n}.hashes"], tensors[f"{n}.items"]) for n in sorted(lengths)}
        return cls(items, settings, NgramIndex(tables, len(items)), tensors.get("vectors"))

    def near(self, texts: Sequence[str], limit: float) -> list[list[Near]]:
        """Return for each text the questions of at least that likeness, the likest first."""
        found: list[dict[int, Near]] = [{} for _ in texts]
        chosen = self.settings.embedding
        if chosen is None or self.vectors is None:
            return [[] for _ in texts]
        pieces = [
            (number, part)
            for number, text in enumerate(texts)
            for part in stretches(text, chosen.window_tokens)
        ]
        for start in range(0, len(pieces), _EMBEDDED_AT_ONCE):
            batch = pieces[start : start + _EMBEDDED_AT_ONCE]
            likeness = embed_texts([part for _, part in batch], chosen.model) @ self.vectors.T
            for row, item in zip(*np.nonzero(likeness >= limit), strict=True):
                number, part = batch[row]
                new = Near(float(likeness[row, item]), int(item), part)
                old = found[number].get(new.item)
                if old is None or old.similarity < new.similarity:
                    found[number][new.item] = new
        ranked = [sorted(each.values(), key=lambda n: (-n.similarity, n.item)) for each in found]
        return [each[: chosen.num_nearest] for each in ranked]


def open_index(items: Sequence[Item], settings: DecontaminateSettings, cache: Path) -> Path:
    """Return the folder of the questions' index under `cache`, made now if it was not there."""
    state = json.dumps([settings.model_dump(mode="json"), items], ensure_ascii=True)
    folder = cache / f"benchmarks-{hashlib.sha256(state.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        Index.build(items, settings).write(folder)
    return folder


def decontaminate_step(index: Path) -> Step:
    """Drop documents that hold a question of the index in this folder.

    Drops: `benchmark_words`; `benchmark_rephrased`, by a judge, or `benchmark_unjudged` where it
    gave no verdict; `benchmark_likeness` where there is no judge.
    """

    def run(documents: "Iterator[Document]", task: Task) -> "Iterator[Document]":
        known = read_index(index)
        while batch := list(itertools.islice(documents, _AT_ONCE)):
            faults = find_contamination([d.text for d in batch], known, task.ask.get("judge"))
            for document, fault in zip(batch, faults, strict=True):
                if fault is None:
                    yield document
                else:
                    document.metadata[FOUND] = fault.described(known)
                    task.drop(document, fault.reason)

    return Step(STEP, run)


class Fault(NamedTuple):
    """A question in a text, and how it was found."""

    reason: str
    item: int
    measure: float
    """Share of the question's n-grams, or cosine."""
    stretch: str | None = None
    """Where in the text, for what was found by likeness."""

    def described(self, index: Index) -> dict[str, object]:
        """Return it as JSON-able data."""
        item = index.items[self.item]
        return {
            "benchmark": item.benchmark,
            "item": item.id,
            "question": item.text[:300],
            "by": self.reason,
            "measure": round(self.measure, 4),
            **({"stretch": self.stretch} if self.stretch else {}),
        }


def find_contamination(
    texts: Sequence[str], index: Index, judge: Ask | None = None
) -> list[Fault | None]:
    """Return for each text the question that it holds, or None.

    Raises: what `judge` raises.
    """
    faults: list[Fault | None] = []
    for text in texts:
        overlap = index.words.find(text)
        enough = overlap is not None and overlap.share >= index.settings.min_overlap
        faults.append(Fault("benchmark_words", *overlap) if overlap and enough else None)
    chosen = index.settings.embedding
    left = [number for number, fault in enumerate(faults) if fault is None]
    if chosen is None or not left:
        return faults
    limit = chosen.min_similarity if judge else chosen.drop_similarity
    found = index.near([texts[number] for number in left], limit)
    if judge:
        decided = _judged(found, index, judge)
    else:
        decided = [_fault("benchmark_likeness", each[0]) if each else None for each in found]
    for number, fault in zip(left, decided, strict=True):
        faults[number] = fault
    return faults


def stretches(text: str, max_tokens: int) -> list[str]:
    """Cut a text into what may be a question: paragraphs, the shortest joined to the next.

    A longer paragraph is cut at `max_tokens` (estimated).
    """
    parts: list[str] = []
    open_tokens = _JOINED_TOKENS
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.strip():
            continue
        if open_tokens < _JOINED_TOKENS:
            paragraph = f"{parts.pop()}\n{paragraph}"
        parts += chunks(paragraph.strip(), max_tokens)
        open_tokens = count_tokens(parts[-1])
    return parts


def _judged(found: Sequence[Sequence[Near]], index: Index, judge: Ask) -> list[Fault | None]:
    frame = _prompt()
    asked = [near for each in found for near in each]
    answers = iter(
        judge(
            [
                frame.replace("{question}", index.items[near.item].text).replace(
                    "{stretch}", near.stretch
                )
                for near in asked
            ]
        )
        if asked
        else ()
    )
    decided: list[Fault | None] = []
    for each in found:
        verdicts = [(near, read_verdict(next(answers))) for near in each]
        same = [near for near, verdict in verdicts if verdict]
        unsure = [near for near, verdict in verdicts if verdict is None]
        if same:
            decided.append(_fault("benchmark_rephrased", same[0]))
        else:
            decided.append(_fault("benchmark_unjudged", unsure[0]) if unsure else None)
    return decided


def read_verdict(answer: str | None) -> bool | None:
    """Return what a judge says: its last yes or no; None if it says neither."""
    words = _VERDICT.findall(answer or "")
    return words[-1].lower() == "yes" if words else None


def _fault(reason: str, near: Near) -> Fault:
    return Fault(reason, near.item, near.similarity, near.stretch)


@functools.lru_cache(maxsize=2)
def read_index(folder: Path) -> Index:
    """Read an index, once in a process."""
    return Index.read(folder)


@functools.cache
def _prompt() -> str:
    file = importlib.resources.files("plait.data") / "prompts" / "judge_rephrased.txt"
    return file.read_text(encoding="utf-8")
