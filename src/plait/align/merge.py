"""Linear merging of two checkpoints: (1 - alpha) a + alpha b, tensor by tensor.

The report merges a model strong in reasoning with one strong in chat this way, with alpha from 0.1
to 0.9 in steps of 0.1, and settles near 0.5 (sections 3.2 and 4.3). It works between descendants of
one model, whose weights still lie in one valley; two that were trained apart give noise. So both
must have the same tensors (a reward model's head among them), shapes, config and tokenizer, and are
refused by name where they do not.

Files are read tensor by tensor and written shard by shard: memory holds one shard of the result,
never a model.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plait.align.reward import SCORE_FILE
from plait.core.artifact import atomic_directory, disk_errors, file_digest
from plait.core.errors import CheckpointError, ConfigError
from plait.core.run_folder import model_directory
from plait.model.hf_config import read_spec

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Scores = dict[str, float]
"""By task."""


class SweepPoint(NamedTuple):
    """What one alpha is worth."""

    alpha: float
    scores: Scores


def merge(a: Path, b: Path, alpha: float, out: Path) -> None:
    """Write (1 - alpha) a + alpha b to `out`, with the other files of `a`.

    Numerics: the sum in float32 (float64 stays), each result in the dtype that `a` has; alpha 0
    and 1 give the tensors of a and b bit for bit.
    Raises: ConfigError for an alpha outside 0..1; CheckpointError naming the first tensor, shape or
    file in which the two differ.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha = {alpha}; allowed: 0 (all of the first model) to 1")
    a, b = model_directory(a), model_directory(b)
    check_mergeable(a, b)
    with ExitStack() as stack, atomic_directory(out) as partial:
        files = {path: stack.enter_context(_open(path)) for path in (*_files(a), *_files(b))}
        places = {name: files[path] for path in _files(b) for name in files[path].keys()}  # noqa: SIM118
        for path in _files(a):
            merged = {}
            for name in files[path].keys():  # noqa: SIM118  (a safetensors file is no mapping)
                first, second = files[path].get_tensor(name), places[name].get_tensor(name)
                merged[name] = interpolate(first, second, alpha)
            with disk_errors(partial / path.name):
                save_file(merged, partial / path.name, metadata={"format": "pt"})
            del merged
        for path in a.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and not path.name.startswith("."):
                shutil.copyfile(path, partial / path.name)


def interpolate(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Return (1 - alpha) a + alpha b, summed in at least float32, in the dtype of a."""
    if alpha in (0.0, 1.0):
        return (b if alpha else a).to(a.dtype)
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return torch.lerp(a.to(dtype), b.to(dtype), alpha).to(a.dtype)  # exact where a equals b


def check_mergeable(a: Path, b: Path) -> None:
    """Check that two model directories hold the same tensors, shapes, config and tokenizer.

    Raises: CheckpointError naming the first difference.
    """
    ours, theirs = _shapes(a), _shapes(b)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise CheckpointError(
                f"{name} is {ours.get(name, 'absent')} in {a} and {theirs.get(name, 'absent')} in "
                f"{b}; only models of one shape can be merged"
            )
    if read_spec(a) != read_spec(b):
        raise CheckpointError(
            f"{a} and {b} have the same tensors but another config.json (pattern, groups, limits): "
            "they compute different things and cannot be merged"
        )
    for name in TOKENIZER_FILES:
        if _content(a / name) != _content(b / name):
            raise CheckpointError(
                f"{name} of {a} and {b} differ; merged weights would mean two things by one token. "
                "Use models with one tokenizer, or copy the file if the difference is meant"
            )


def sweep(
    a: Path,
    b: Path,
    alphas: Iterable[float],
    out: Path,
    evaluate: Callable[[Path], Scores],
) -> list[SweepPoint]:
    """Merge with every alpha into `out` in turn, and score each model by `evaluate(directory)`.

    What stays in `out` is the last one; merge again with the alpha you choose.
    """
    points = []
    for alpha in alphas:
        merge(a, b, alpha, out)
        points.append(SweepPoint(alpha, evaluate(out)))
    return points


def kept(scores: Scores, parents: Sequence[Scores]) -> float:
    """Return which share of the better parent's score a model keeps, at the task where it keeps
    least."""
    best_known = {name: max(parent[name] for parent in parents) for name in scores}
    shares = [scores[name] / most for name, most in best_known.items() if most > 0]
    return min(shares, default=1.0)


def best(points: Sequence[SweepPoint], parents: Sequence[Scores]) -> SweepPoint:
    """Return the point that keeps most of both parents; of equals, the one nearest to one half."""
    if not any(score > 0 for parent in parents for score in parent.values()):
        logger.warning(
            "neither model scores more than 0 on any task, so nothing chooses between alphas: give "
            "tasks that one of them can do, or raise max_tokens"
        )
    return max(points, key=lambda p: (kept(p.scores, parents), -abs(p.alpha - 0.5)))


def _files(directory: Path) -> list[Path]:
    found = sorted(directory.glob("model*.safetensors"))
    if not found:
        raise CheckpointError(f"{directory}: no model*.safetensors file")
    return [*found, *directory.glob(SCORE_FILE)]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None


def _shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(directory):
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def _content(path: Path) -> Any:
    """Return a JSON file's value, whatever its layout, or the digest of another file."""
    if not path.is_file():
        return None
    if path.suffix == ".json":
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from None
    return file_digest(path)
