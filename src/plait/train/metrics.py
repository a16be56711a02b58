"""metrics.jsonl: one JSON object per line, training steps and evaluations, each exactly once.

    {"step": 7, "tokens": 28672, "loss": 5.1, "learning_rate": 4e-4, "grad_norm": 0.8, ...}
    {"step": 7, "eval.bits_per_byte.english": 2.1, ...}

Lines are appended as they happen. A run that resumes from step s first drops the lines after s and
a last line cut by a kill: those steps are about to be made again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.core.artifact import write_atomic
from plait.train import parallel

EVALUATION = "eval."


class Metrics:
    """The metrics file of one run; only the main process writes it."""

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self.evaluations: dict[int, dict[str, float]] = {}
        """Scores by step, under the names the evaluation gave."""
        self.last: dict[str, Any] = {}
        """Line of the last training step; empty before the first."""
        kept = _keep(path, last_step) if parallel.is_main() else []
        for line in parallel.agreed(kept):
            self._remember(line)

    def write_step(self, line: dict[str, Any]) -> None:
        """Append the line of a training step."""
        self._write(line)

    def write_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Append the scores of an evaluation after `step` updates."""
        self._write({"step": step} | {EVALUATION + name: value for name, value in scores.items()})

    def _write(self, line: dict[str, Any]) -> None:
        self._remember(line)
        if parallel.is_main():
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _remember(self, line: dict[str, Any]) -> None:
        if "loss" in line:
            self.last = line
        else:
            self.evaluations[line["step"]] = {
                key.removeprefix(EVALUATION): value for key, value in line.items() if key != "step"
            }


def _keep(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Cut the file after `last_step` and return what stays."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    kept = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if value["step"] > last_step:
            break
        kept.append(value)
    whole = "".join(json.dumps(line) + "\n" for line in kept)
    if whole != text:
        write_atomic(path, whole)
    return kept
