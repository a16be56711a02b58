"""Checkpoints of a run in progress: everything the next step depends on, whole or absent.

    checkpoints/step_00000100/
        model.safetensors        float32 masters
        optimizer.safetensors    AdamW's state, `<parameter>::exp_avg` and so on
        random.safetensors       torch's generators
        state.json               step, tokens, time, place of the loader, digests of the files above

A folder gets its name only when it is complete, so a kill leaves the previous one; one damaged
later (truncated disk, bad copy) is seen by its digests, reported and given up for the one before:
it is removed, unless none is whole. The learning rate is a function of the step and is not stored.
These folders are for resuming; the product of a run is a Hugging Face directory, written by the
stage.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from plait.core.artifact import (
    atomic_directory,
    disk_errors,
    file_digest,
    settle_directories,
    write_json,
)
from plait.core.errors import CheckpointError
from plait.train import parallel

logger = logging.getLogger(__name__)

_FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors")
_SEPARATOR = "::"


class Position(NamedTuple):
    """How far a run has come."""

    step: int = 0
    """Finished optimizer steps."""
    tokens: int = 0
    """Tokens run through the model, by all processes."""
    elapsed_s: float = 0.0
    """Wall time so far, over all sessions."""
    steps_s: float = 0.0
    """Of it, the time of the steps themselves: no evaluations, no checkpoints."""


@runtime_checkable
class Resumable(Protocol):
    """A source of batches that can be put back to an earlier place."""

    def state(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave."""
        ...


def save_checkpoint(
    directory: Path,
    position: Position,
    model: nn.Module,
    optimizer: Optimizer,
    batches: Resumable,
    keep: int,
) -> None:
    """Write `directory`/step_* and delete all but the newest `keep`; every process must call it."""
    tensors = {
        "model.safetensors": parallel.gathered(model.state_dict()),
        "optimizer.safetensors": parallel.gathered(_optimizer_state(model, optimizer)),
        "random.safetensors": _random_state(),
    }
    if parallel.is_main():
        with atomic_directory(directory / f"step_{position.step:08d}") as folder:
            for name, content in tensors.items():
                with disk_errors(folder / name):
                    save_file(content, folder / name)
            digests = {name: file_digest(folder / name) for name in tensors}
            place = {"position": position._asdict(), "batches": batches.state(), "files": digests}
            write_json(folder / "state.json", place)
        for old in _folders(directory)[:-keep]:
            shutil.rmtree(old)
    parallel.agreed(None)  # nobody runs ahead of a checkpoint that is not there yet


def resume(directory: Path, model: nn.Module, optimizer: Optimizer, batches: Resumable) -> Position:
    """Restore the newest whole checkpoint; the start of the run if there is none.

    What kills left half-written is removed, and so are damaged checkpoints after that one.
    Raises: CheckpointError if every checkpoint is damaged, or one belongs to another model.
    """
    folder = parallel.agreed(_newest_whole(directory) if parallel.is_main() else None)
    if folder is None:
        return Position()
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    masters = load_file(folder / "model.safetensors")
    with torch.no_grad():
        own = model.state_dict()
        _check_names(folder / "model.safetensors", own, masters)
        for name, tensor in own.items():
            tensor.copy_(parallel.placed_like(tensor, masters[name]))
        _load_optimizer_state(model, optimizer, load_file(folder / "optimizer.safetensors"))
    _load_random_state(load_file(folder / "random.safetensors"))
    batches.load_state(state["batches"])
    # Checkpoints of earlier versions have the whole time only.
    position = Position(**{"steps_s": state["position"]["elapsed_s"]} | state["position"])
    logger.info("resuming after step %d from %s", position.step, folder)
    return position


def newest(directory: Path) -> Path | None:
    """Return the newest checkpoint folder, None if there is none."""
    folders = _folders(directory)
    return folders[-1] if folders else None


def _folders(directory: Path) -> list[Path]:
    """Return checkpoint folders, oldest first; unfinished ones have another name."""
    return sorted(directory.glob("step_*"))


def _newest_whole(directory: Path) -> Path | None:
    settle_directories(directory, "step_*")
    damaged: list[Path] = []
    for folder in reversed(_folders(directory)):
        problem = _problem(folder)
        if problem is None:
            for later in damaged:  # else they would pass for the newest, and for ones to keep
                logger.warning("removing %s", later)
                shutil.rmtree(later)
            return folder
        logger.warning("%s is damaged (%s); trying the checkpoint before it", folder, problem)
        damaged.append(folder)
    if damaged:
        raise CheckpointError(
            f"{directory}: all {len(damaged)} checkpoints are damaged; restore one from a copy, or "
            "delete this folder to train from the start"
        )
    return None


def _problem(folder: Path) -> str | None:
    try:
        digests = json.loads((folder / "state.json").read_text(encoding="utf-8"))["files"]
        for name in _FILES:
            if file_digest(folder / name) != digests[name]:
                return f"{name} does not have the content that was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return "state.json cannot be read"
    return None


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        name + _SEPARATOR + key: value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer_state(model: nn.Module, optimizer: Optimizer, saved: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for full_name, value in saved.items():
        name, _, key = full_name.partition(_SEPARATOR)
        parameter = parameters[name]
        optimizer.state[parameter][key] = parallel.placed_like(parameter, value)


def _check_names(file: Path, own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    for name in sorted(own.keys() | saved.keys()):
        ours = tuple(own[name].shape) if name in own else "no such tensor"
        theirs = tuple(saved[name].shape) if name in saved else "no such tensor"
        if ours != theirs:
            raise CheckpointError(
                f"{file}: {name} is {theirs} in the checkpoint, {ours} in the model; the model's "
                "settings changed: train into another folder or restore the settings"
            )


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _load_random_state(saved: dict[str, Tensor]) -> None:
    torch.set_rng_state(saved["cpu"])
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])
