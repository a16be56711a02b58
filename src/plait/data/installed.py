"""Text and code that the Python interpreter and the installed packages carry.

Names are `stdlib/...` and `site-packages/...`. Two kinds of file hold text inside something else: a
distribution's METADATA (its long description, under the licence it declares) and the standard
library's `pydoc_data/topics.py` (one page per help topic).
"""

import ast
import email.parser
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from plait.data.pages import Page, Pattern, media_type_of

_PYTHON_LICENCE = "PSF-2.0"


def installed_pages(pattern: Pattern) -> Iterator[Page]:
    """Yield the pages whose name matches, in order of name."""
    for prefix, root in (
        ("stdlib", Path(sysconfig.get_path("stdlib"))),
        ("site-packages", Path(sysconfig.get_path("purelib"))),
    ):
        for path in _files(root):
            name = f"{prefix}/{path.relative_to(root).as_posix()}"
            if name in pattern:
                yield from _pages_of(name, path)


def _files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        # The standard library may hold the site-packages folder: that has its own name.
        skipped = {"__pycache__", "site-packages", "dist-packages"}
        subfolders[:] = sorted(set(subfolders) - skipped)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                yield path


def _pages_of(name: str, path: Path) -> Iterator[Page]:
    body = path.read_bytes()
    url = f"python:{name}"
    standard = name.startswith("stdlib/")
    source = "installed:python" if standard else f"installed:{name.split('/')[1]}"
    if name.endswith(".dist-info/METADATA"):
        message = email.parser.Parser().parsestr(body.decode("utf-8", errors="replace"))
        text = message.get_payload()
        licence = message.get("License-Expression") or message.get("License")
        media_type = (message.get("Description-Content-Type") or "text/x-rst").split(";")[0]
        if isinstance(text, str) and text.strip():
            first_line = licence.splitlines()[0] if licence else None
            yield Page(url, media_type.strip(), text.encode(), source, first_line)
    elif name.endswith("pydoc_data/topics.py"):
        for topic, text in sorted(_topics(body).items()):
            yield Page(f"{url}#{topic}", "text/x-rst", text.encode(), source, _PYTHON_LICENCE)
    else:
        licence = _PYTHON_LICENCE if standard else None
        yield Page(url, media_type_of(name), body, source, licence)


def _topics(body: bytes) -> dict[str, str]:
    """Return the texts of `topics = {"name": "text", ...}` without running the module."""
    for statement in ast.parse(body).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            return ast.literal_eval(statement.value)
    return {}
