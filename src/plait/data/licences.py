"""Under which licence source code is, and whether that is permissive.

What the head of a file says comes first; then what is stated of it (a Debian copyright file, a
package's metadata, the recipe); then the licence file in its folder or the nearest above
(`RepositoryLicences`). Texts are recognised by ScanCode's index of some 30,000 notices, which takes
seconds to load and 1.4 GB; it is asked for comments that talk of licences only, once for each
different one. `licences.toml` holds the list of permissive licences and the names that are not
SPDX's.
"""

import functools
import importlib.resources
import re
import sys
import tomllib
import types
import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from plait.core.errors import PlaitError

HEAD_CHARACTERS = 2_500
_TEXT_CHARACTERS = 100_000
_LICENCE_FILE = re.compile(
    r"(un)?licen[cs]e([-._].*)?|copying([-._].*)?|(mit|bsd|apache)[-_.]licen[cs]e.*", re.IGNORECASE
)
_TALKS_OF_LICENCES = re.compile(
    r"licen[cs]|copying|spdx|permission|permitted|redistribut|public domain|no warranty",
    re.IGNORECASE,
)
_SPDX_TAG = re.compile(r"SPDX-License-Identifier:[ \t]*([\w.+ ()-]+)")
_COPYRIGHT_LINE = re.compile(r"^.*(copyright|\(c\)|©|@author).*$", re.IGNORECASE | re.MULTILINE)
_PARAGRAPHS = re.compile(r"\n\s*\n")
_MARKERS = ("//", "#", "*", ";", "--", "%")
_BLOCKS = {"/*": "*/", '"""': '"""', "'''": "'''", "<!--": "-->"}
_GNU = re.compile(r"(?P<name>[LA]?GPL|GFDL)[- ]?v?(?P<version>\d(\.\d)?)(?P<later>\+)?", re.I)
_OPERATORS = re.compile(r"(?i)\s*,?\s+(or|and(?:/or)?|with)\s+|\s*([()])\s*")
_UNKNOWN = re.compile(
    r"LicenseRef-scancode-(unknown|free-unknown|proprietary-license)|\bNOASSERTION"
)


def head_licence(text: str) -> str | None:
    """Return the licence that the head of a source file names, as an SPDX expression, or None."""
    head = comments(text[:HEAD_CHARACTERS])
    if tag := _SPDX_TAG.search(head):
        return normalised(tag[1])
    parts = [part for part in _PARAGRAPHS.split(_COPYRIGHT_LINE.sub("", head)) if part]
    talking = [i for i, part in enumerate(parts) if _TALKS_OF_LICENCES.search(part)]
    return detected("\n\n".join(parts[talking[0] : talking[-1] + 1])) if talking else None


@functools.lru_cache(maxsize=4096)
def detected(text: str) -> str | None:
    """Return the licences whose text or notice is found in a text, joined by AND, or None.

    Where a whole licence stands, what is said around it (how to apply it) does not count.
    """
    found, whole = [], []
    for detection in _scancode()(query_string=text[:_TEXT_CHARACTERS]):
        expression = detection.license_expression_spdx
        if expression and not _UNKNOWN.search(expression):
            found.append(expression)
            if any(match.rule.is_license_text for match in detection.matches):
                whole.append(expression)
    expressions = dict.fromkeys(whole or found)
    return normalised(" AND ".join(f"({part})" for part in expressions)) if expressions else None


def normalised(statement: str | None) -> str | None:
    """Return a stated licence as a simplified SPDX expression; None if it is none that is known.

    Debian's short names (`GPL-2+`, `Expat`), commas and lower-case operators are understood.
    """
    if not statement or not statement.strip():
        return None
    pieces = _OPERATORS.split(statement.strip())
    words = [piece for piece in pieces if piece and piece.strip()]
    renamed = " ".join(_renamed(word.strip().rstrip(",")) for word in words)
    return _simplified(renamed)


def is_permissive(expression: str) -> bool:
    """Say whether an SPDX expression lets code be used under permissive licences alone."""
    permissive = frozenset(_table()["permissive"])

    def allowed(node: Any) -> bool:
        if type(node).__name__ == "OR":
            return any(allowed(arg) for arg in node.args)
        if type(node).__name__ == "AND":
            return all(allowed(arg) for arg in node.args)
        licence = getattr(node, "license_symbol", node)
        return licence.key in permissive

    return allowed(_licensing().parse(expression))


def is_licence_file(path: str) -> bool:
    """Say whether a path is that of a licence text: LICENSE, COPYING, ..."""
    return bool(_LICENCE_FILE.fullmatch(PurePosixPath(path).name)) and not path.endswith(
        (".py", ".c", ".h", ".js", ".go", ".rs", ".java")
    )


class RepositoryLicences:
    """The licence of each path of a tree by the licence files in it: paths and contents."""

    def __init__(self, files: Iterable[tuple[str, bytes]]) -> None:
        self.files = files

    def of(self, path: str) -> str | None:
        """Return the licence by the files in the path's folder or the nearest above, or None.

        All of several files in one folder count: which of them is a choice they do not say.
        """
        parents = [str(parent) for parent in PurePosixPath(path).parents]
        return next((self._folders[p] for p in parents if self._folders.get(p)), None)

    @functools.cached_property
    def _folders(self) -> dict[str, str | None]:
        found: dict[str, set[str]] = {}
        for path, body in self.files:
            if licence := detected(body.decode("utf-8", errors="replace")):
                found.setdefault(str(PurePosixPath(path).parent), set()).add(f"({licence})")
        return {folder: _simplified(" AND ".join(sorted(all_))) for folder, all_ in found.items()}


@functools.lru_cache(maxsize=4096)
def folder_licence(folder: Path) -> str | None:
    """Return the licence of a folder of the file system, by itself or the nearest above; or None.

    The search ends at the top of a repository (`.git`) or of the file system.
    """
    files = [path for path in sorted(folder.iterdir()) if is_licence_file(path.name)]
    tree = RepositoryLicences((path.name, path.read_bytes()) for path in files if path.is_file())
    if (licence := tree.of("file")) or (folder / ".git").exists() or folder.parent == folder:
        return licence
    return folder_licence(folder.parent)


def comments(head: str) -> str:
    """Return the comment and documentation lines at the head of a source file, markers taken off.

    Lines of code are left out; blank lines are where paragraphs end.
    """
    kept, end = [], None
    for line in head.split("\n"):
        line = line.strip()
        opened = next((mark for mark in _BLOCKS if line.startswith(mark)), None)
        if end is not None:
            end = None if end in line else end
        elif opened is not None:
            end = None if _BLOCKS[opened] in line[len(opened) :] else _BLOCKS[opened]
        elif line and not line.startswith(_MARKERS):
            continue
        kept.append(line.strip("/#*;-%!<>\"' "))
    return "\n".join(kept)


def _renamed(word: str) -> str:
    lower = word.lower()
    if lower in ("or", "and", "with", "(", ")"):
        return word.upper()
    if lower == "and/or":
        return "OR"
    if alias := _table()["aliases"].get(lower):
        return alias
    if gnu := _GNU.fullmatch(word):
        version = gnu["version"] if "." in gnu["version"] else f"{gnu['version']}.0"
        return f"{gnu['name'].upper()}-{version}-{'or-later' if gnu['later'] else 'only'}"
    return word


@functools.lru_cache(maxsize=4096)
def _simplified(expression: str) -> str | None:
    licensing = _licensing()
    try:
        parsed = licensing.parse(expression, validate=True)
    except Exception as error:
        if type(error).__module__.startswith(("license_expression", "boolean")):
            return None
        raise
    return None if parsed is None else str(parsed.simplify())


@functools.cache
def _table() -> dict[str, Any]:
    text = importlib.resources.files("plait.data").joinpath("licences.toml").read_text("utf-8")
    return tomllib.loads(text)


@functools.cache
def _licensing() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


@functools.cache
def _scancode() -> Any:
    # ScanCode asks `typecode` what kind a file is. It gets texts here, and typecode does not load
    # beside pluggy 1.6 and later, which pytest needs.
    for name in ("typecode", "typecode.contenttype"):
        absent: Any = types.ModuleType(name)
        absent.get_type = None
        sys.modules.setdefault(name, absent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from licensedcode.detection import detect_licenses
    except ImportError:
        raise PlaitError(
            "licences in source files are found by ScanCode: install it with pip install "
            "'plait[code]', or set code.detect_licences = false to take what the source states"
        ) from None
    return detect_licenses
