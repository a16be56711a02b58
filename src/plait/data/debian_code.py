"""Source code out of Debian source packages, each file with its licence.

`apt-get source --download-only` fetches (and verifies) a package into a cache folder. Package
lists of sources are kept there too, made from the system's own sources, so neither root nor a
`deb-src` line is needed. Archives are read as streams; nothing is unpacked to disk.

A package's `debian/copyright` in the machine-readable format (DEP-5) says which files are under
which licence; of several patterns that match a file the last one counts. Where there is no such
statement, the licence files in the source tree speak (`licences.RepositoryLicences`).
"""

import logging
import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from plait.core.artifact import atomic_directory, write_atomic
from plait.core.errors import DataError
from plait.data.debian import APT, Runner, run_command
from plait.data.licences import RepositoryLicences, is_licence_file, normalised
from plait.data.pages import Page, Pattern, media_type_of

logger = logging.getLogger(__name__)

_MAX_BYTES = 1_000_000
_TARGET = "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)"


class SourcePackage(NamedTuple):
    """A downloaded source package."""

    name: str
    version: str
    upstream: Path
    """Archive of the authors' files."""
    packaging: Path | None
    """Archive with Debian's `debian/` folder; None where it is inside `upstream`."""


def download_sources(
    packages: Sequence[str], cache: Path, run: Runner = run_command
) -> list[SourcePackage]:
    """Bring source packages into the cache folder.

    What is there is not asked for again; what apt cannot fetch is left out with a warning.
    Raises: OSError or subprocess.SubprocessError if apt is absent; DataError if none can be had.
    """
    missing = [name for name in packages if not _folder(cache, name).is_dir()]
    if missing:
        options = _own_lists(cache / "source-lists", run)
        for name in missing:
            try:
                with atomic_directory(_folder(cache, name)) as folder:
                    run([*APT, *options, "source", "--download-only", name], folder.resolve())
            except subprocess.SubprocessError as error:
                reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
                logger.warning("source package %s cannot be had (%s); left out", name, reason)
    found = [_package(_folder(cache, n)) for n in packages if _folder(cache, n).is_dir()]
    if not found:
        raise DataError(f"apt can fetch none of the source packages {', '.join(packages)}")
    return found


def source_files(package: SourcePackage, pattern: Pattern) -> Iterator[Page]:
    """Yield the files of a package whose path matches, each with its licence.

    Raises: DataError if an archive cannot be read.
    """
    stated, repository = stated_licences(package), repository_licences(package)
    origin = f"debian-source:{package.name}={package.version}"
    for path, body in _members(package.upstream):
        if path in pattern and len(body) <= _MAX_BYTES:
            url = f"file:///{quote(f'{package.name}-{package.version}/{path}')}"
            statement = stated.of(path)
            licence = normalised(statement) or repository.of(path) or statement
            yield Page(url, media_type_of(path), body, origin, licence)


def stated_licences(package: SourcePackage) -> "StatedLicences":
    """Return what the package's copyright file states."""
    return StatedLicences(_copyright(package))


def repository_licences(package: SourcePackage) -> RepositoryLicences:
    """Return what the licence files in the authors' tree say; they are read when asked."""
    files = _members(package.upstream)
    return RepositoryLicences((path, body) for path, body in files if is_licence_file(path))


class StatedLicences:
    """Which licence a path is under, by a DEP-5 file; always None for other files."""

    def __init__(self, text: str) -> None:
        self.stanzas: list[tuple[re.Pattern[str], str]] = []
        for stanza in re.split(r"\n\s*\n", text):
            fields = Parser().parsestr(stanza.strip() + "\n", headersonly=True)
            files, licence = fields.get("Files"), fields.get("License")
            if files and licence:
                pattern = "|".join(_wildcard(name) for name in files.split())
                self.stanzas.append((re.compile(pattern), licence.strip().splitlines()[0].strip()))

    def of(self, path: str) -> str | None:
        """Return the first line of the licence that the last matching stanza states, or None."""
        found = [licence for pattern, licence in self.stanzas if pattern.fullmatch(path)]
        return found[-1] if found else None


def _wildcard(name: str) -> str:
    """Return DEP-5's `*` (also across `/`) and `?` as a regular expression."""
    return re.escape(name.removeprefix("./")).replace(r"\*", ".*").replace(r"\?", ".")


def _own_lists(folder: Path, run: Runner) -> list[str]:
    """Fetch lists of source packages into a folder and return apt's options to use them."""
    folder = folder.resolve()
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    listed = run(
        ["apt-get", "indextargets", "--format", _TARGET, "Created-By: Packages", "Origin: Debian"],
        folder,
    )
    # Security suites list versions that the main archive of a frozen mirror may lack.
    lines = sorted({line for line in listed.splitlines() if "security" not in line})
    write_atomic(folder / "sources.list", "\n".join(lines) + "\n")
    options = [
        *("-o", f"Dir::Etc::sourcelist={folder / 'sources.list'}"),
        *("-o", "Dir::Etc::sourceparts=-"),
        *("-o", f"Dir::State::lists={folder / 'lists'}"),
        *("-o", "Dir::Cache::pkgcache="),
        *("-o", "Dir::Cache::srcpkgcache="),
        *("-o", "APT::Sandbox::User=root"),
    ]
    run([*APT, *options, "update"], folder)
    return options


def _folder(cache: Path, name: str) -> Path:
    return cache / "sources" / name


def _package(folder: Path) -> SourcePackage:
    description = next(iter(sorted(folder.glob("*.dsc"))), None)
    archives = sorted(p for p in folder.iterdir() if ".tar." in p.name and p.suffix != ".asc")
    packaging = [path for path in archives if ".debian.tar." in path.name]
    upstream = [path for path in archives if re.search(r"_[^_]*(\.orig)?\.tar\.", path.name)]
    upstream = [path for path in upstream if path not in packaging]
    if description is None or not upstream:
        raise DataError(f"{folder}: not a source package; delete it to fetch it again")
    name, _, version = description.name.removesuffix(".dsc").partition("_")
    return SourcePackage(name, version, upstream[0], packaging[0] if packaging else None)


def _copyright(package: SourcePackage) -> str:
    archive, name = package.packaging or package.upstream, "debian/copyright"
    for path, body in _members(archive, strip=package.packaging is None):
        if path == name:
            return body.decode("utf-8", errors="replace")
    return ""


def _members(archive: Path, strip: bool = True) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the plain files of an archive; `strip` takes off the top folder."""
    try:
        with tarfile.open(archive, "r:*") as files:
            for member in files:
                path = member.name.removeprefix("./")
                path = path.partition("/")[2] if strip else path
                if member.isfile() and member.size <= _MAX_BYTES and path:
                    content = files.extractfile(member)
                    assert content is not None
                    yield path, content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{archive}: cannot be unpacked ({error}); delete its folder to fetch it again"
        ) from None
