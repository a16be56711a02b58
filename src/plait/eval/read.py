"""A run directory as the report reads it: stage folders, finished or not, and what is in them.

Nothing here knows how a stage works; a file that is absent or not yet whole reads as empty, for a
report must also be possible of a run that stopped half-way.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

UNKNOWN = "unknown"
"""Kind of a folder that no stage has written, or not yet."""
_STAGE_FOLDER = re.compile(r"(\d+)_\w+")


class StageRecord(NamedTuple):
    """What one stage folder holds."""

    name: str
    """Of the folder: `04_pretrain`."""
    kind: str
    path: Path
    settings: dict[str, Any]
    """Resolved settings of the stage."""
    manifest: dict[str, Any]
    """Empty while the stage is unfinished."""
    lines: list[dict[str, Any]]
    """Of metrics.jsonl."""

    @property
    def finished(self) -> bool:
        """True once the manifest stands."""
        return bool(self.manifest)

    @property
    def training_steps(self) -> list[dict[str, Any]]:
        """Lines of optimizer steps."""
        return [line for line in self.lines if "loss" in line and "step" in line]

    def evaluations(self, prefix: str) -> dict[int, dict[str, float]]:
        """Return the scores of evaluations by step, names cut by `prefix`."""
        found: dict[int, dict[str, float]] = {}
        for line in self.lines:
            scores = {
                key.removeprefix(prefix): value
                for key, value in line.items()
                if key.startswith(prefix)
            }
            if scores and "step" in line:
                found[line["step"]] = scores
        return found

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON product of the stage, {} if it has none."""
        return _read_object(self.path / name)

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """Return a JSON-lines product of the stage, [] if it has none."""
        return _read_lines(self.path / name)


def read_stages(run_directory: Path, names: Collection[str] | None = None) -> list[StageRecord]:
    """Return the stages of a run in the order of their numbers; with `names`, only these folders'.

    A recipe that was renumbered leaves folders that are none of its stages any more.
    """
    folders = [
        (int(match[1]), path)
        for path in run_directory.iterdir()
        if (names is None or path.name in names)
        and path.is_dir()
        and (match := _STAGE_FOLDER.fullmatch(path.name))
    ]
    return [read_stage(path) for _, path in sorted(folders)]


def read_stage(path: Path) -> StageRecord:
    """Return one stage folder."""
    origin = _read_object(path / "settings.json")
    return StageRecord(
        name=path.name,
        kind=str(origin.get("stage", UNKNOWN)),
        path=path,
        settings=origin.get("settings") or {},
        manifest=_read_object(path / "manifest.json"),
        lines=_read_lines(path / "metrics.jsonl"),
    )


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    values = []
    # Not splitlines: what a model writes may hold U+0085 or U+2028, which JSON leaves as they are.
    for line in text.split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            # The last line of a run that was killed.
            break
        if isinstance(value, dict):
            values.append(value)
    return values
