"""The stage `curate`: raw pages in, clean documents out, the fate of every page on record.

    out/documents/{train,validation}/<category>.jsonl    text, id, metadata
    out/funnel.json                                      what came in, what was dropped and why
    out/report.html                                      the same to look at, with samples
    out/contamination.json                               benchmarks' questions found, if looked for
    out/dropped/<category>.jsonl                         if asked for
    out/cache/                                           downloads and collected pages, kept

    collect   sources -> WARC shards; each shard is one task of what follows
    clean     the steps of each category's content: web, text, maths or code (`steps`)
    exact     drop equal texts; compute MinHash signatures
    near      drop near duplicates; late steps: benchmarks' questions out, scores (`late`)
    tiers     categories cut into several by their scores
    split     documents to training and validation by a hash of their id

Duplicates go before the split, so a validation document has no near copy in training. Every pass
is a list of datatrove steps (`executors` run them). Run again after a kill, the stage goes on at
the first unfinished task and ends in the same bytes.
"""

import functools
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.core.artifact import atomic_directory, file_states, write_json
from plait.core.errors import DataError
from plait.core.run_folder import input_digest
from plait.core.seed import mix_seed
from plait.data.collect import Shard, collect
from plait.data.curate_report import write_report
from plait.data.curate_settings import CategorySettings, CurateSettings
from plait.data.decontaminate_report import Removals
from plait.data.funnel import Funnel, describe_losses, stage_metrics
from plait.data.late import Tools, late_steps, open_tools
from plait.data.steps import Ask, path_module
from plait.data.tiers import Cuts, find_cuts

__all__ = ["CurateSettings", "run"]

logger = logging.getLogger(__name__)


def run(
    settings: CurateSettings,
    inputs: dict[str, Path],
    out: Path,
    ask: Mapping[str, Ask] | None = None,
) -> dict[str, float]:
    """Curate documents from the sources of `settings`.

    Inputs: `student`, the stage that trained one, for scores by it; `benchmarks`, stages whose
    held-out questions no document may hold. `ask` gives language models to the steps that want one,
    by role.

    Returns: `documents_in`, `documents_kept`, `characters`, and `kept.<category>`,
    `characters.<category>`.
    Raises: ConfigError for a path that matches nothing; DataError for a source that cannot be had
    or a required category that keeps no document.
    """
    # Where and how many at once the tasks run changes the time, not the documents.
    chosen = settings.model_dump(mode="json", exclude={"workers", "executor", "slurm"})
    given = {role: input_digest(folder) for role, folder in sorted(inputs.items())}
    fingerprint = _digest([chosen, file_states(settings.files_read()), given])
    finished = _read_funnel(out)
    if finished.get("fingerprint") == fingerprint:
        shutil.rmtree(out / "cache" / "work", ignore_errors=True)
        return stage_metrics(finished["categories"])
    tools = open_tools(settings, inputs, out / "cache" / "steps")
    shards = collect(settings, out / "cache")
    work, logs = _open_work(out, _digest([fingerprint, _shard_states(shards)]))
    counts = _run_passes(settings, shards, work, logs, ask or {}, tools)
    funnel, removals = _write_documents(settings, work, out, len(shards), counts, tools)
    table = funnel.table()
    _check_not_empty(settings, table)
    contamination = tools.index and removals.write(out, tools.index, "judge" in (ask or {}))
    write_report(out, table, contamination)
    write_json(out / "funnel.json", {"fingerprint": fingerprint, "categories": table})
    shutil.rmtree(work)
    return stage_metrics(table)


def _run_passes(
    settings: CurateSettings,
    shards: list[Shard],
    work: Path,
    logs: Path,
    ask: Mapping[str, Ask],
    tools: Tools,
) -> dict[str, int]:
    """Run everything between the shards and `work/tiers`; return the counters of the walks."""
    # datatrove and the extractors take a second to import, which reading a recipe need not pay.
    from plait.data import dedup
    from plait.data.curate_io import DropWriter, PassReader, PassWriter
    from plait.data.executors import counters, open_executor
    from plait.data.extract import check_selectors
    from plait.data.walk import EarlyWalk, LateWalk, TierWalk

    def drops(name: str, reason: str | None = None) -> DropWriter:
        return DropWriter(work / "dropped" / name, settings.keep_dropped, reason)

    for name, category in settings.categories.items():
        check_selectors(name, category.skip)
    cache = work.parent / "steps"
    num_tasks = max(1, len(shards))
    with open_executor(settings, logs) as executor:
        clean = [
            EarlyWalk(settings.categories, shards, drops("1_early"), cache, ask),
            PassWriter(work / "clean"),
            dedup.exact_signatures(work),
        ]
        executor.run("clean", clean, num_tasks)
        executor.run("exact_find", [dedup.find_exact(work)], 1)
        exact = [
            PassReader(work / "clean"),
            dedup.drop_exact(work, drops("2_exact", "exact_duplicate")),
            PassWriter(work / "exact"),
            dedup.NearSignatures(work, settings.dedup),
        ]
        executor.run("exact_drop", exact, num_tasks)
        executor.run("near_find", [dedup.FindNear(work)], settings.dedup.num_bands)
        executor.run("near_cluster", [dedup.cluster_near(work, settings.dedup)], 1)
        near = [
            PassReader(work / "exact"),
            dedup.drop_near(work, drops("3_near", "near_duplicate")),
            LateWalk(settings.categories, shards, drops("4_late"), cache, ask, tools=tools),
            PassWriter(work / "near"),
        ]
        executor.run("near_drop", near, num_tasks)
        if _makes_tiers(settings):
            walk = functools.partial(TierWalk, settings.categories, shards)
            tiers = [
                PassReader(work / "near"),
                walk(drops("5_tiers"), cache, ask, cuts=_cuts(settings, shards, work)),
                PassWriter(work / "tiers"),
            ]
            executor.run("tiers", tiers, num_tasks)
    return counters(logs, "clean") | counters(logs, "near_drop") | counters(logs, "tiers")


def _makes_tiers(settings: CurateSettings) -> bool:
    return any(category.tiers for category in settings.categories.values())


def _cuts(settings: CurateSettings, shards: list[Shard], work: Path) -> dict[str, Cuts]:
    """Return where each category's scores are cut into tiers; kept in `work` once found."""
    file = work / "cuts.json"
    if not file.exists():
        cuts = {}
        for name, category in settings.categories.items():
            tasks = [task for task, shard in enumerate(shards) if shard.category == name]
            kept = [work / "near" / f"{task:05d}.jsonl" for task in tasks]
            if category.tiers:
                cuts[name] = find_cuts((d for _, d in _lines(kept)), category.tiers)
        write_json(file, cuts)
    return json.loads(file.read_text())


def _write_documents(
    settings: CurateSettings,
    work: Path,
    out: Path,
    num_tasks: int,
    counts: dict[str, int],
    tools: Tools,
) -> tuple[Funnel, Removals]:
    """Write the final files in the order of tasks and count what they hold."""
    steps = {name: _step_names(category, tools) for name, category in settings.categories.items()}
    labels = {name: [s.name for s in c.scores] for name, c in settings.categories.items()}
    funnel, removals = Funnel(steps, counts, labels), Removals()
    last = "tiers" if _makes_tiers(settings) else "near"
    kept = [work / last / f"{task:05d}.jsonl" for task in range(num_tasks)]
    limits = _validation_limits(settings, kept)
    with atomic_directory(out / "documents") as folder:
        for split in ("train", "validation"):
            (folder / split).mkdir()
        for line, document in _lines(kept):
            metadata = document["metadata"]
            is_validation = _place(settings, document["id"]) <= limits[metadata["category"]]
            split = "validation" if is_validation else "train"
            with (folder / split / f"{metadata['category']}.jsonl").open("ab") as file:
                file.write(line)
            funnel.add_kept(document, is_validation)
    with atomic_directory(out / "dropped") as folder:
        for line, document in _lines(sorted((work / "dropped").glob("*/*.jsonl"))):
            funnel.add_dropped(document)
            removals.add(document)
            if settings.keep_dropped:
                with (folder / f"{document['category']}.jsonl").open("ab") as file:
                    file.write(line)
    if not settings.keep_dropped:
        (out / "dropped").rmdir()
    return funnel, removals


def _step_names(category: CategorySettings, tools: Tools) -> list[str]:
    """Return the names of all that a category's documents go through, in order."""
    early = [step.name for step in path_module(category).steps(category)]
    late = [step.name for step in late_steps(category, tools)]
    return ["read", *early, "exact", "near", *late, *(["tiers"] if category.tiers else [])]


def _validation_limits(settings: CurateSettings, files: list[Path]) -> dict[str, float]:
    """Return the place in [0, 1) up to which a category's documents are held out.

    It is `validation_share`, or that of the lowest of several documents where the share would give
    none.
    """
    made = [end for name, category in settings.categories.items() for end in category.made(name)]
    lowest = dict.fromkeys(made, 1.0)
    if settings.validation_share == 0:
        return dict.fromkeys(made, -1.0)
    counts: Counter[str] = Counter()
    for _, document in _lines(files):
        name = document["metadata"]["category"]
        lowest[name] = min(lowest[name], _place(settings, document["id"]))
        counts[name] += 1
    share = settings.validation_share
    return {name: max(share, lowest[name]) if counts[name] > 1 else share for name in made}


def _place(settings: CurateSettings, document_id: str) -> float:
    return mix_seed(settings.seed, "validation", document_id) / 2**63


def _lines(files: list[Path]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for path in files:
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    yield line, json.loads(line)


def _check_not_empty(settings: CurateSettings, table: dict[str, Any]) -> None:
    """Refuse an empty category, or warn where it is not required; warn of empty tiers."""
    for name, category in settings.categories.items():
        if table[name]["documents_kept"]:
            for tier in set(category.made(name)) - set(table[name]["tiers"]):
                logger.warning("category %r: none of its documents reach the tier %r", name, tier)
            continue
        problem = f"category {name!r} is empty: {describe_losses(table[name])}"
        if category.required:
            raise DataError(f"{problem}; add sources or widen its rules and languages")
        logger.warning("%s; it is left out", problem)


def _open_work(out: Path, fingerprint: str) -> tuple[Path, Path]:
    """Return the folders of unfinished passes and of their logs, emptied if the work changed."""
    work, logs = out / "cache" / "work", out / "logs"
    marker = work / "fingerprint"
    if not marker.exists() or marker.read_text() != fingerprint:
        for folder in (work, logs):
            shutil.rmtree(folder, ignore_errors=True)
        work.mkdir(parents=True)
        marker.write_text(fingerprint)
    return work, logs


def _shard_states(shards: list[Shard]) -> list[tuple[str, str, int]]:
    return [(shard.path.name, shard.category, shard.path.stat().st_size) for shard in shards]


def _read_funnel(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / "funnel.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
