"""Importance of every part of a parent: forward passes only, one layer in memory at a time.

The residual stream of all calibration rows is carried through the layers once; each is read from
its file, measured (`observe`) and forgotten, so the peak is one layer and the stream, not the
model. Then, if layers are to be removed, `depth` looks for those.

The folder of scores is also the state of the work. `work.json` says whose scores these are,
`layers/` has what was measured in each layer, `stream.safetensors` the stream behind the last of
them, `depth.json` the search for layers. An interrupted run goes on at the layer it had reached; a
finished folder is only read, and more removals can be asked of it later.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.compress.depth import DepthSearch, Rules
from plait.compress.observe import NormObserver, Observer
from plait.compress.plots import write_plots
from plait.compress.scores import FACTS_FILE, FINAL_NORM, Scores
from plait.compress.stream import (
    Sweep,
    compute_dtype,
    embed,
    final_hidden,
    row_chunks,
    run_layer,
)
from plait.core.artifact import atomic_file, disk_errors, file_states, write_json
from plait.core.config import Settings
from plait.core.errors import CheckpointError, ConfigError, DataError
from plait.core.progress import Progress
from plait.core.sizes import GIB
from plait.model.hf_config import CONFIG_FILE
from plait.model.hf_stream import ModelDirectory

_STREAM = "stream.safetensors"


class ScoreSettings(Settings):
    """How importance is measured."""

    num_removals: int = Field(0, ge=0)
    """Layers to find for removal; 0 measures widths only."""
    depth_metric: Literal["mse", "kl"] = "mse"
    """What a missing layer changes: mean squared difference of logits (the report's choice) or
    KL(parent || reduced)."""
    depth_rows: int | None = Field(None, gt=0)
    """Use only the first rows to find layers, which costs many passes; None = all."""
    keep: dict[str, Annotated[int, Field(ge=0)]] = {}  # noqa: RUF012 - pydantic copies it
    """Fewest layers of a kind (M, * or -) that stay; the report keeps 4 of attention."""
    protect_ends: bool = False
    """Never remove the first and the last layer."""
    tokens_per_forward: int = Field(2048, gt=0)
    """Tokens that pass through a layer at once; bounds the memory of activations."""
    stream_gib: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Memory for the residual streams of candidates; more of it reads each layer less often."""
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """Where layers run: cpu, cuda or cuda:N."""

    def check_device(self) -> None:
        """Check that the device is there, which a recipe made elsewhere cannot know.

        Raises: ConfigError if it is not.
        """
        device = torch.device(self.device)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"score.device = {self.device!r}: torch sees {torch.cuda.device_count()} GPUs here"
            )

    def sweep(self, model: ModelDirectory) -> Sweep:
        """Return how streams are carried through a model."""
        return Sweep(
            compute_dtype(model, self.device),
            torch.device(self.device),
            self.tokens_per_forward,
            int(self.stream_gib * GIB),
        )


def score(
    parent: str | Path, tokens: Int[Tensor, "B T"], folder: Path, settings: ScoreSettings
) -> Scores:
    """Measure the importance of all parts of a model directory on calibration rows.

    Activations are in the model's dtype, or in float32 where the processor multiplies that faster.
    Raises: ConfigError if the settings ask for too much, the device is not there or the folder
    holds scores of something else, DataError if the rows cannot be used, CheckpointError if the
    parent is incomplete.
    """
    settings.check_device()
    model = ModelDirectory(parent)
    _check_tokens(tokens, model.spec.vocab_size)
    rules = Rules(settings.keep, settings.protect_ends)
    rules.check(model.spec, settings.num_removals)
    _claim(folder, _subject(model, tokens, settings))
    if (folder / FACTS_FILE).exists():
        scores = Scores.read(folder)
        if len(scores.removals) >= settings.num_removals:
            return scores
    sweep = settings.sweep(model)
    x = _measure_layers(model, tokens, folder, sweep)
    facts = {
        "num_rows": tokens.shape[0],
        "row_tokens": tokens.shape[1],
        "dtype": str(sweep.dtype).removeprefix("torch."),
        "layer_passes": model.spec.num_layers,
    }
    scores = _collect(model, folder)
    if settings.num_removals:
        rows = slice(settings.depth_rows)
        reference = final_hidden(model, x[rows])
        del x
        search = DepthSearch(
            model,
            tokens[rows],
            reference,
            rules,
            sweep,
            settings.depth_metric,
            folder / "depth.json",
        )
        scores = scores._replace(removals=search.run(settings.num_removals))
        facts |= {
            "depth_num_rows": len(reference),
            "depth_metric": settings.depth_metric,
            "depth_layer_passes": search.layer_passes,
            "depth_head_passes": search.head_passes,
        }
    scores = scores._replace(facts=facts)
    write_plots(scores, folder)
    scores.write(folder)
    (folder / _STREAM).unlink(missing_ok=True)
    return scores


def _measure_layers(
    model: ModelDirectory, tokens: Int[Tensor, "B T"], folder: Path, sweep: Sweep
) -> Float[Tensor, "B T D"]:
    """Measure what has not been measured yet; return the stream behind the last layer."""
    num_layers = model.spec.num_layers
    start, x = _read_stream(folder, sweep) or (
        0,
        embed(model, tokens, sweep.dtype, sweep.device),
    )
    with Progress("importance", num_layers, "layers") as progress:
        progress.resume(start)
        for index in range(start, num_layers):
            layer = model.layer(index, sweep.dtype, sweep.device)
            file = _layer_file(folder, index)
            if file.exists():
                run_layer(layer, x, sweep.tokens_per_forward)
            else:
                observer = Observer(model.spec, index, layer)
                run_layer(observer, x, sweep.tokens_per_forward)
                _write_tensors(file, observer.tensors())
                _write_tensors(folder / _STREAM, {"x": x}, {"layer": str(index + 1)})
            progress.advance(1, model.spec.pattern[index])
    file = _layer_file(folder, num_layers)
    if not file.exists():
        _write_tensors(file, _measure_final(model, x, sweep))
    return x


@torch.no_grad()
def _measure_final(model: ModelDirectory, x: Tensor, sweep: Sweep) -> dict[str, Tensor]:
    """Measure the final norm, the last reader of the stream."""
    observer = NormObserver(model.spec.norm_eps)
    finite = True
    for rows in row_chunks(x, sweep.tokens_per_forward):
        normed = final_hidden(model, x[rows])
        finite &= bool(normed.isfinite().all())
        observer.add(x[rows], normed)
    if not finite:
        raise CheckpointError(
            f"{model.path}: its hidden states are not finite in {sweep.dtype}; the weights are "
            "damaged or need a wider dtype"
        )
    return observer.tensors(FINAL_NORM)


def _collect(model: ModelDirectory, folder: Path) -> Scores:
    """Join what was measured in every layer."""
    tensors: dict[str, Tensor] = {}
    for index in range(model.spec.num_layers + 1):
        tensors |= load_file(_layer_file(folder, index))
    return Scores.from_tensors(model.spec, tensors)


def _read_stream(folder: Path, sweep: Sweep) -> tuple[int, Tensor] | None:
    """Return where an interrupted run stopped: the next layer and the stream in front of it."""
    file = folder / _STREAM
    if not file.exists():
        return None
    with safe_open(file, framework="pt") as stored:
        x, layer = stored.get_tensor("x"), int(stored.metadata()["layer"])
    # A copy: the stream is overwritten in place, the mapped file must not be.
    return layer, x.to(sweep.device, sweep.dtype, copy=True)


def _layer_file(folder: Path, index: int) -> Path:
    return folder / "layers" / f"{index:03d}.safetensors"


def _write_tensors(
    file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    with atomic_file(file) as temporary, disk_errors(file):
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)


def _subject(model: ModelDirectory, tokens: Tensor, settings: ScoreSettings) -> dict[str, Any]:
    """Return what the scores depend on."""
    digest = hashlib.sha256(tokens.cpu().long().numpy().tobytes()).hexdigest()
    files = [
        (Path(path).name, *state)
        for path, *state in file_states([model.path / CONFIG_FILE, *model.files])
    ]
    depth = settings.model_dump(include={"depth_metric", "depth_rows", "keep", "protect_ends"})
    return {
        "parent": [list(file) for file in files],
        "tokens": {"shape": list(tokens.shape), "sha256": digest},
        **depth,
    }


def _claim(folder: Path, subject: dict[str, Any]) -> None:
    """Take a folder for the scores of a subject, or go on with one that has them."""
    file = folder / "work.json"
    if not file.exists():
        # What begins with a dot was being written when a run was killed.
        if folder.exists() and any(not each.name.startswith(".") for each in folder.iterdir()):
            raise ConfigError(f"{folder}: is not empty and holds no scores; give a new folder")
        write_json(file, subject)
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error}); score into a new folder") from None
    if changed := sorted(key for key in subject if found.get(key) != subject[key]):
        raise ConfigError(
            f"{folder}: holds scores of something else, {', '.join(changed)} changed since; give a "
            "new folder or delete this one"
        )


def _check_tokens(tokens: Tensor, vocab_size: int) -> None:
    rows, row_tokens = tokens.shape
    if rows < 1 or row_tokens < 2:
        raise DataError(
            f"{rows} calibration rows of {row_tokens} tokens are too few; at least 1 row of 2"
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
        raise DataError(
            f"calibration tokens reach from {int(tokens.min())} to {int(tokens.max())}, the "
            f"parent's vocabulary from 0 to {vocab_size - 1}: they are another tokenizer's"
        )
