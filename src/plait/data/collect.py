"""Where raw pages come from: every source ends as WARC files under the run folder.

Packages and local files are written into `.warc.gz` shards, so that curation reads them as it reads
a crawl; the user's own WARC files are read where they are. A source once collected is kept and not
asked again. Texts are often copyleft: they stay under the run folder.
"""

import hashlib
import json
import logging
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from plait.core.artifact import atomic_directory, file_states
from plait.core.errors import DataError
from plait.core.progress import Progress
from plait.data.curate_settings import CategorySettings, CurateSettings
from plait.data.debian import Runner, download, package_pages, run_command
from plait.data.debian_code import download_sources, source_files
from plait.data.installed import installed_pages
from plait.data.licences import folder_licence
from plait.data.pages import Page, Pattern, media_type_of, sample
from plait.data.source_settings import (
    DebianCodeSource,
    DebianSource,
    FilesSource,
    InstalledSource,
    matching_files,
)
from plait.data.warc import write_shards

logger = logging.getLogger(__name__)

Source = DebianSource | DebianCodeSource | InstalledSource | FilesSource


class Shard(NamedTuple):
    """A WARC file and the category of everything in it."""

    path: Path
    category: str
    source: str
    """What documents say they came from, unless their record knows better."""
    licence: str | None


def collect(settings: CurateSettings, cache: Path, run: Runner = run_command) -> list[Shard]:
    """Bring the pages of all sources into WARC files and list these, category by category.

    Raises: ConfigError if a path matches nothing; DataError if a source cannot be had or is empty.
    """
    settings.files_read()  # a pattern that matches nothing stops here, before downloads
    shards = []
    total = sum(len(_sources(category)) for category in settings.categories.values())
    with Progress("collect", total, "sources") as progress:
        for name, category in settings.categories.items():
            for source in _sources(category):
                collector = _Collector(name, category.content, settings.seed, cache, run)
                folder = collector.collect(source)
                shards += [
                    Shard(path, name, folder.name, None)
                    for path in sorted(folder.glob("*.warc.gz"))
                ]
                progress.advance(1, name)
            for source in category.warc:
                shards += [
                    Shard(path, name, str(path), source.licence)
                    for path in matching_files(source.paths, f"categories.{name}")
                ]
    return shards


class _Collector(NamedTuple):
    category: str
    content: str
    seed: int
    cache: Path
    run: Runner

    def collect(self, source: Source) -> Path:
        """Return the folder of the source's shards, made now if it was not there."""
        folder = self.cache / "pages" / self.category / _folder_name(source, self)
        if folder.is_dir():
            return folder
        try:
            pages = self.pages(source)
            with atomic_directory(folder) as partial:
                num_pages = write_shards(pages, partial)
                if num_pages == 0:
                    raise DataError(
                        f"category {self.category!r}: no page matches {_patterns(source)}"
                    )
        except (OSError, subprocess.SubprocessError, DataError) as error:
            if not isinstance(source, DebianSource | DebianCodeSource):
                raise
            return self.fall_back(source, error)
        return folder

    def pages(self, source: Source) -> Iterator[Page]:
        """Yield the sampled pages of a source."""
        if isinstance(source, DebianSource):
            pattern = Pattern(source.pages, source.exclude)
            for deb in download(source.packages, self.cache / "debian", self.run):
                yield from sample(package_pages(deb, pattern), source.max_pages, self.seed)
        elif isinstance(source, DebianCodeSource):
            pattern = Pattern(source.pages, source.exclude)
            for package in download_sources(source.packages, self.cache / "debian", self.run):
                yield from sample(source_files(package, pattern), source.max_pages, self.seed)
        elif isinstance(source, InstalledSource):
            pattern = Pattern(source.pages, source.exclude)
            yield from sample(installed_pages(pattern), source.max_pages, self.seed)
        else:
            pages = _file_pages(source, self.category, self.content == "code")
            yield from sample(pages, source.max_pages, self.seed)

    def fall_back(self, source: DebianSource | DebianCodeSource, error: Exception) -> Path:
        """Take what the source names instead of Debian packages."""
        reason = getattr(error, "stderr", None) or str(error)
        problem = (
            f"category {self.category!r}: Debian packages {', '.join(source.packages)} cannot be "
            f"had ({reason.strip().splitlines()[-1]})"
        )
        if isinstance(source, DebianCodeSource) or source.fallback is None:
            raise DataError(
                f"{problem}; run where apt-get and its mirror are, or give the source a fallback"
            ) from None
        logger.warning("%s; taking what installed Python packages carry", problem)
        return self.collect(source.fallback)


def _sources(category: CategorySettings) -> Sequence[Source]:
    return (*category.debian, *category.debian_code, *category.installed, *category.files)


def _file_pages(source: FilesSource, category: str, is_code: bool) -> Iterator[Page]:
    for path in matching_files(source.paths, f"categories.{category}"):
        url = path.resolve().as_uri()
        licence = source.licence
        if licence is None and is_code:
            licence = folder_licence(path.resolve().parent)
        yield Page(url, media_type_of(path.name), path.read_bytes(), "files", licence)


def _folder_name(source: Source, collector: _Collector) -> str:
    """Name a source's folder after its settings and, for the user's files, their state."""
    state: list[object] = [source.model_dump(mode="json"), collector.seed]
    if isinstance(source, DebianSource):
        state = [source.model_dump(mode="json", exclude={"fallback"}), collector.seed]
    elif isinstance(source, FilesSource):
        state += file_states(matching_files(source.paths, f"categories.{collector.category}"))
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]
    return f"{type(source).__name__.removesuffix('Source').lower()}-{digest}"


def _patterns(source: Source) -> str:
    names = source.paths if isinstance(source, FilesSource) else source.pages
    return ", ".join(names)
