"""Files that are either whole or absent.

Everything is written under a temporary name in the target's own folder, flushed to disk and
renamed, so a kill at any moment leaves the previous version or the new one, never half of either.
Only a folder that replaces another needs two renames: killed between them, the previous version is
back as soon as the folder is written again.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from plait.core.errors import ConfigError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write that takes the name `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    yield temporary
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, readable and whole."""
    write_atomic(path, json_bytes(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


def json_bytes(text: str) -> bytes:
    """Encode JSON; what is no UTF-8, as in a file name of another encoding, is escaped."""
    return text.encode(errors="backslashreplace")  # a lone surrogate as JSON's own \udc80


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `path` when the block ends without an error.

    A folder that already stands at `path` is replaced.
    Raises: ConfigError if that is the one this process works in, or holds it.
    """
    if path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ConfigError(
            f"{path}: the present working directory lies there, so it cannot be replaced whole; "
            "give the name of another folder"
        )
    _put_back(path)
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    replaced = path.with_name(f".{path.name}.replaced")
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
    temporary.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def settle_directories(parent: Path, pattern: str) -> None:
    """Remove what killed `atomic_directory`s left beside their targets `parent`/`pattern`.

    A version that a new one had not yet taken the place of is put back. Nobody may be writing.
    """
    for replaced in parent.glob(f".{pattern}.replaced"):
        _put_back(parent / replaced.name.removeprefix(".").removesuffix(".replaced"))
        shutil.rmtree(replaced, ignore_errors=True)
    for partial in parent.glob(f".{pattern}.partial"):
        shutil.rmtree(partial)


def _put_back(path: Path) -> None:
    """Undo the first of `atomic_directory`'s two renames where a kill prevented the second."""
    replaced = path.with_name(f".{path.name}.replaced")
    if replaced.exists() and not path.exists():
        replaced.rename(path)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_states(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return path, size and time of change of files: what tells that one was edited."""
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what safetensors says of the disk as the OSError that it was, naming `path`.

    Its own error is no OSError and has the number in its text alone.
    """
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from None
