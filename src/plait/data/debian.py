"""Documentation pages out of Debian packages, without installing them and without root.

`apt-get download` fetches (and verifies) a package into a cache folder; `dpkg-deb --fsys-tarfile`
streams its files, of which only the wanted pages are held. Nothing is unpacked to disk.
"""

import logging
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from plait.core.artifact import atomic_directory
from plait.core.errors import DataError
from plait.data.pages import Page, Pattern, media_type_of

logger = logging.getLogger(__name__)

Runner = Callable[[Sequence[str], Path], str]
"""Runs a command in a folder and returns what it prints; raises OSError or SubprocessError."""

APT = ("apt-get", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30", "-q")
_CANDIDATE = re.compile(r"^(\S+):\n(?:  .*\n)*?  Candidate: (?!\(none\))(\S+)", re.MULTILINE)


def run_command(command: Sequence[str], folder: Path) -> str:
    """Run a command in a folder and return what it prints; give up after ten minutes."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=600
    )
    return done.stdout


def download(packages: Sequence[str], cache: Path, run: Runner = run_command) -> list[Path]:
    """Bring packages into the cache folder and return their .deb files.

    Each entry may be alternatives, `a|b`. What is in the cache is not asked for again; an entry
    that apt does not know is left out with a warning. Package lists are updated only if need be.

    Raises: OSError or subprocess.SubprocessError if apt is absent or fails; DataError if no entry
    can be had.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if any(_cached(entry, cache) is None for entry in packages):
        wanted = _choose([entry for entry in packages if _cached(entry, cache) is None], cache, run)
        if wanted:
            _fetch(wanted, cache, run)
    found = [deb for entry in packages if (deb := _cached(entry, cache)) is not None]
    if not found:
        raise DataError(f"apt knows none of the packages {', '.join(packages)}")
    return found


def package_pages(deb: Path, pattern: Pattern) -> Iterator[Page]:
    """Yield the pages of a .deb file whose path matches.

    Links are passed over: what they point at comes under its own name.
    Raises: DataError if the package cannot be read.
    """
    package, version = _name_and_version(deb)
    licence = f"see /usr/share/doc/{package}/copyright of Debian package {package} {version}"
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as unpacker:
        assert unpacker.stdout is not None
        assert unpacker.stderr is not None
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as files:
                for member in files:
                    path = member.name.removeprefix("./")
                    if member.isfile() and path in pattern:
                        content = files.extractfile(member)
                        assert content is not None
                        url = "file:///" + quote(path)
                        source = f"debian:{package}={version}"
                        yield Page(url, media_type_of(path), content.read(), source, licence)
        except tarfile.TarError as error:
            unpacker.kill()
            reason = unpacker.stderr.read().decode(errors="replace").strip() or error
            raise DataError(
                f"{deb}: cannot be unpacked ({reason}); delete it to fetch it again"
            ) from None


def _choose(entries: Sequence[str], cache: Path, run: Runner) -> list[str]:
    """Return the first known alternative of each entry, after an update if one has none."""
    names = [name for entry in entries for name in entry.split("|")]
    known = _known(names, cache, run)
    if any(known.isdisjoint(entry.split("|")) for entry in entries):
        try:
            run([*APT, "update"], cache)
        except subprocess.SubprocessError:
            logger.warning("apt-get update failed (it needs root); going on with the old lists")
        known = _known(names, cache, run)
    chosen = []
    for entry in entries:
        name = next((name for name in entry.split("|") if name in known), None)
        if name is None:
            logger.warning("apt knows no package %s here; left out", entry)
        else:
            chosen.append(name)
    return chosen


def _known(names: Sequence[str], cache: Path, run: Runner) -> set[str]:
    return {match[1] for match in _CANDIDATE.finditer(run(["apt-cache", "policy", *names], cache))}


def _fetch(names: Sequence[str], cache: Path, run: Runner) -> None:
    # Downloaded beside and renamed: a kill leaves no half package in the cache.
    with atomic_directory(cache / "incoming") as folder:
        run([*APT, "-o", "APT::Sandbox::User=root", "download", *names], folder)
    for deb in sorted((cache / "incoming").glob("*.deb")):
        deb.replace(cache / deb.name)


def _cached(entry: str, cache: Path) -> Path | None:
    for name in entry.split("|"):
        if debs := sorted(cache.glob(f"{name}_*.deb")):
            return debs[-1]
    return None


def _name_and_version(deb: Path) -> tuple[str, str]:
    name, _, rest = deb.name.removesuffix(".deb").partition("_")
    return name, rest.rpartition("_")[0].replace("%3a", ":")
