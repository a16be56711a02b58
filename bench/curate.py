"""Curation on a processor: the web path beside datatrove's pipeline, languages, near duplicates.

    web         pages/s of one core, from a WARC file to deduplicated JSONL: the stage `curate` with
                its defaults for `web`, beside datatrove's blocks in FineWeb's order and settings
                (URL filter, trafilatura, Gopher, C4, FineWeb filters, MinHash 14 x 8 of 5 words)
    language    segments/s of language identification
    near        time and peak memory of each pass of MinHash from 1,000 to 100,000 documents, and
                what ten million documents would take

Each side of `web` runs in a process of its own, turn by turn, and is timed from start to end by
wall clock and by the processor time of all its processes. The pages are Python's, SciPy's and
statsmodels' manuals out of Debian packages, fetched once into the cache folder. datatrove gets
words split at blanks, which is quicker than the tokenizers it would load, and no language filter,
whose model is a download.

Targets: web >= 100 pages/s a core and >= 3x datatrove; language >= 5,000 segments/s; near: time
linear in documents, memory of a task flat.

    .venv/bin/python bench/curate.py [--only web language near] [--pages N] [--rounds N] [--out F]
"""

import argparse
import datetime
import gzip
import json
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("python3.11-doc|python3.13-doc|python3.12-doc", "python-scipy-doc",
            "python-statsmodels-doc")  # fmt: skip
NEAR_SIZES = (1_000, 10_000, 100_000)
TASK_DOCUMENTS = 5_000


def main() -> None:
    """Measure what was asked for and write the record."""
    arguments = read_arguments()
    if arguments.side:
        SIDES[arguments.side](arguments.cache)
        return
    started = time.perf_counter()
    lines = [*head(), ""]
    for name in arguments.only:
        lines += [f"## {name}", "", *PARTS[name](arguments), ""]
        took = f"All of it took {time.perf_counter() - started:.0f} s."
        print("\n".join(lines[-30:]), flush=True)
        if arguments.out:
            arguments.out.write_text("\n".join([*lines, took]) + "\n")


def head() -> list[str]:
    """Return the lines that say on what and when this was measured."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return [
        "# Curation on a processor",
        "",
        f"- {names[0] if names else platform.machine()}, {os.cpu_count()} cores",
        f"- Python {platform.python_version()}, datatrove {version('datatrove')}, trafilatura "
        f"{version('trafilatura')}, jusText {version('justext')}",
        f"- {datetime.date.today()}, commit {commit.stdout.strip()}, `{' '.join(sys.argv)}`",
    ]


# Web path


def web(arguments: argparse.Namespace) -> list[str]:
    """Time both sides from WARC file to deduplicated JSONL."""
    num_pages = write_crawl(arguments.cache, arguments.pages)
    figures: dict[str, list[tuple[float, float, float]]] = {"plait": [], "datatrove": []}
    for _ in range(arguments.rounds):
        for side, rows in figures.items():
            rows.append(timed_side(side, arguments.cache))
    size = (arguments.cache / "crawl.warc.gz").stat().st_size
    rows = [
        f"{num_pages:,} pages, {size / 1e6:.0f} MB compressed; medians of {arguments.rounds} runs.",
        "",
        "| side | wall s | processor s | pages/wall s | pages/processor s | kept | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, runs in figures.items():
        wall, cpu, peak = (statistics.median(run[i] for run in runs) for i in range(3))
        kept = count_lines(arguments.cache / side)
        rows.append(
            f"| {side} | {wall:.1f} | {cpu:.1f} | {num_pages / wall:.0f} | {num_pages / cpu:.0f} | "
            f"{kept:,} | {peak:.0f} |"
        )
    for i, name in enumerate(("wall", "processor")):
        ratios = [d[i] / p[i] for p, d in zip(*figures.values(), strict=True)]
        rows += ["", f"Ratio by {name} time: {statistics.median(ratios):.2f} "
                 f"({min(ratios):.2f} - {max(ratios):.2f})."]  # fmt: skip
    return rows


def write_crawl(cache: Path, max_pages: int) -> int:
    """Write `cache`/crawl.warc.gz with pages at web addresses and return how many they are."""
    from plait.data.curate_test import write_crawl as write_responses
    from plait.data.debian import download, package_pages
    from plait.data.pages import Pattern, sample

    debs = download(PACKAGES, cache / "debian")
    pattern = Pattern(["*.html"], ["*genindex*", "*/_modules/*", "*/search.html"])
    pages = [page for deb in debs for page in sample(package_pages(deb, pattern), 4_000, seed=0)]
    random.Random(0).shuffle(pages)
    headers = [("Content-Type", "text/html; charset=utf-8")]
    crawl = [(page.url[8:], page.body, headers, "200 OK") for page in pages[:max_pages]]
    write_responses(cache / "crawl.warc.gz", crawl)
    return len(crawl)


def timed_side(side: str, cache: Path) -> tuple[float, float, float]:
    """Return wall seconds, processor seconds and peak MiB of one side in a fresh process."""
    shutil.rmtree(cache / side, ignore_errors=True)
    command = [sys.executable, __file__, "--side", side, "--cache", str(cache)]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-3000:]}")
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, float(done.stdout.split()[-1])


def plait_side(cache: Path) -> None:
    """Curate the crawl."""
    from plait.data.curate import run
    from plait.data.curate_settings import CurateSettings

    web = {"warc": [{"paths": [str(cache / "crawl.warc.gz")]}], "languages": ["en"]}
    settings = CurateSettings.parse({"categories": {"web": web}, "workers": 1}, "bench")
    run(settings, {}, cache / "plait")
    print_peak()


def datatrove_side(cache: Path) -> None:
    """Take the crawl through datatrove's blocks."""
    import tldextract
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import dedup, filters
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.readers import JsonlReader, WarcReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Blanks(WordTokenizer):
        """Splits words at blanks and sentences after full stops."""

        def word_tokenize(self, text: str) -> list[str]:
            """Return words."""
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            """Return sentences."""
            return re.split(r"(?<=[.!?])\s+", text)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            """Return where sentences start and end."""
            ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", text)]
            return list(zip([0, *ends], [*ends, len(text)], strict=True))

    out, words = cache / "datatrove", Blanks()
    urls = filters.URLFilter()
    urls.tldextractor = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    config = dedup.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    passes = [
        (1, [
            WarcReader(str(cache), glob_pattern="crawl.warc.gz"),
            urls,
            Trafilatura(favour_precision=True),
            filters.GopherRepetitionFilter(language=words),
            filters.GopherQualityFilter(language=words),
            filters.C4QualityFilter(filter_no_terminal_punct=False, language=words),
            filters.FineWebQualityFilter(language=words),
            JsonlWriter(f"{out}/clean"),
        ]),
        (1, [
            JsonlReader(f"{out}/clean"),
            dedup.MinhashDedupSignature(f"{out}/signatures", config=config, language=words),
        ]),
        (14, [dedup.MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config)]),
        (1, [dedup.MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config)]),
        (1, [
            JsonlReader(f"{out}/clean"),
            dedup.MinhashDedupFilter(f"{out}/remove"),
            JsonlWriter(f"{out}/documents"),
        ]),
    ]  # fmt: skip
    for number, (tasks, steps) in enumerate(passes):
        LocalPipelineExecutor(
            steps, tasks=tasks, workers=1, logging_dir=f"{out}/logs{number}"
        ).run()
    print_peak()


SIDES: dict[str, Callable[[Path], None]] = {"plait": plait_side, "datatrove": datatrove_side}


def print_peak() -> None:
    """Print the peak memory of this process, in MiB."""
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def count_lines(folder: Path) -> int:
    """Return how many documents a side kept."""
    total = 0
    for path in folder.glob("documents/**/*.jsonl*"):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            total += sum(1 for _ in lines)
    return total


# Language identification


def language(arguments: argparse.Namespace) -> list[str]:
    """Time the identification of languages."""
    from plait.data.language import identify
    from plait.data.language_test import ARTICLES

    segments = [text for _ in range(150) for text in ARTICLES.values()]
    identify(segments[0])
    rates = []
    for _ in range(arguments.rounds):
        started = time.process_time()
        for text in segments:
            identify(text)
        rates.append(len(segments) / (time.process_time() - started))
    length = statistics.mean(map(len, segments))
    return [
        f"{statistics.median(rates):,.0f} segments per processor second ({min(rates):,.0f} - "
        f"{max(rates):,.0f}); {len(segments):,} segments of {length:.0f} characters, 16 languages."
    ]


# Near duplicates


def near(arguments: argparse.Namespace) -> list[str]:
    """Time the passes of MinHash at several sizes, each in a fresh process."""
    rows = [
        f"Documents of 300 words, a tenth of them near copies, {TASK_DOCUMENTS:,} to a task; "
        "processor seconds of all tasks of a pass, and the peak memory of their process.",
        "",
        "| documents | signatures | bands | clusters | filter | us a document | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in NEAR_SIZES:
        command = [sys.executable, "-c", f"import curate; curate.near_side({size})"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        seconds, peak = json.loads(done.stdout)
        each = sum(seconds) / size * 1e6
        rows.append(
            f"| {size:,} | "
            + " | ".join(f"{s:.2f}" for s in seconds)
            + f" | {each:.0f} | {peak:.0f} |"
        )
    return [*rows, "", *on_paper()]


def near_side(size: int) -> None:
    """Print the seconds of each pass over `size` documents and the peak MiB."""
    from datatrove.data import Document

    from plait.data import dedup
    from plait.data.curate_io import DropWriter, PassReader, PassWriter
    from plait.data.curate_settings import DedupSettings
    from plait.data.executors import LocalTasks

    settings, rng = DedupSettings(), random.Random(0)
    vocabulary = [f"w{number}" for number in range(30_000)]
    num_tasks = -(-size // TASK_DOCUMENTS)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with PassWriter(work / "exact") as writer:
            words: list[str] = []
            for number in range(size):
                if number % 10 == 0 and words:
                    words[rng.randrange(300)] = "edited"
                else:
                    words = rng.choices(vocabulary, k=300)
                metadata = {"category": "c", "language": "en", "url": None}
                document = Document(" ".join(words), str(number), metadata=metadata)
                writer.write(document, number // TASK_DOCUMENTS)
        passes, seconds = LocalTasks(work / "logs", None), []
        drops = DropWriter(work / "drops", False, "near_duplicate")
        read = PassReader(work / "exact")
        for steps, tasks in (
            ([read, dedup.NearSignatures(work, settings)], num_tasks),
            ([dedup.FindNear(work)], settings.num_bands),
            ([dedup.cluster_near(work, settings)], 1),
            ([read, dedup.drop_near(work, drops), PassWriter(work / "near")], num_tasks),
        ):
            started = time.process_time()
            passes.run(f"pass{len(seconds)}", steps, tasks)
            seconds.append(time.process_time() - started)
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def on_paper() -> list[str]:
    """Return what ten million documents take, from the sizes of the records."""
    from plait.data.curate_settings import DedupSettings
    from plait.data.dedup import _RANGE_RECORDS, _RECORD

    documents, bands = 10_000_000, DedupSettings().num_bands
    disk = documents * bands * _RECORD.itemsize
    held = _RANGE_RECORDS * (8 + 8 + 8 + 8 + 8)
    return [
        f"On paper, {documents / 1e6:.0f} million documents: {bands} bands x {_RECORD.itemsize} "
        f"bytes are {bands * _RECORD.itemsize} a document, {disk / 1e9:.1f} GB on disk. A task of "
        f"signatures holds its own shard, 5,000 documents 1.2 MB. A task of bands maps its band "
        f"({documents * _RECORD.itemsize / 1e6:.0f} MB, read once) and holds a range of "
        f"{_RANGE_RECORDS:,} records with keys, order and places: {held / 1e6:.0f} MB. Clusters "
        "hold the documents that have a duplicate, about 200 bytes each: 200 MB for one million."
    ]


PARTS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "web": web,
    "language": language,
    "near": near,
}


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pages", type=int, default=1_500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("runs/bench-curate"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.cache = arguments.cache.resolve()
    return arguments


if __name__ == "__main__":
    main()
