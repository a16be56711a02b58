"""The stage `sft`: fine-tune a model on conversations.

Reads `model` (a run folder or any model directory with its tokenizer); conversations come from the
keyed-chain generator, from JSONL files, or both. Writes `model/`, `data/train.jsonl` and, for
generated tasks, `data/test.jsonl` with held-out questions.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from plait.align.chains import ChainSettings, held_out_questions, train_conversations
from plait.align.sft import SampleBatches, SampleSet, build_samples, read_conversations
from plait.core.artifact import write_atomic
from plait.core.errors import ConfigError, DataError
from plait.core.progress import track
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.train.fit import fit, load_masters, session
from plait.train.loop import LoopSettings, TrainResult, TrainSettings
from plait.train.losses import next_token_loss
from plait.train.precision import Precision, set_precision
from plait.train.schedule import Schedule

PositiveInt = Annotated[int, Field(gt=0)]


class SftSettings(LoopSettings):
    """Settings of the stage `sft`."""

    chains: ChainSettings | None = None
    """Generated tasks to learn."""
    files: tuple[str, ...] = ()
    """JSONL files of conversations (`messages`, optional `tools`)."""
    num_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data."""
    tokens_per_batch: PositiveInt = 8192
    """Most tokens of a micro-batch; samples are packed whole, longer ones are left out."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Rate at the end of the decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear rise."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all steps in which the rate falls to its minimum."""
    precision: Precision = "float32"
    """Dtype of activations; parameters and moments are float32 in any case."""
    seed: int = 0
    """Of the tasks and of the order of samples."""
    num_threads: PositiveInt | None = None
    """Processor threads; None for torch's own choice."""

    @model_validator(mode="after")
    def _has_data(self) -> "SftSettings":
        if self.chains is None and not self.files:
            raise ValueError("needs data: a table `chains`, a list `files`, or both")
        return self

    def files_read(self) -> list[Path]:
        """Return the conversation files."""
        paths = [Path(name).expanduser() for name in self.files]
        for path in paths:
            if not path.is_file():
                raise ConfigError(f"files: {path} does not exist (from {Path.cwd()})")
        return paths

    def schedule(self, num_batches: int) -> Schedule:
        """Return the schedule of a run over `num_batches` micro-batches per epoch."""
        num_steps = max(1, round(num_batches * self.num_epochs / self.accumulation))
        warmup_steps = min(self.warmup_steps, num_steps - 1)
        return Schedule(
            num_steps=num_steps,
            learning_rate=self.learning_rate,
            min_learning_rate=self.min_learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=min(round(num_steps * self.decay_share), num_steps - warmup_steps),
        )


def run(settings: SftSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Fine-tune `inputs["model"]` and write the model to `out/model`.

    Raises: ConfigError for a file that does not exist; DataError for unusable conversations or
    held-out questions that are also in the training data.
    """
    with session(settings.num_threads):
        model = set_precision(load_masters(inputs["model"]), settings.precision)
        tokenizer_directory = model_directory(inputs["model"])
        data = _prepare(settings, Tokenizer.from_directory(tokenizer_directory), out / "data")
        batches = SampleBatches(data.samples, settings.tokens_per_batch, settings.seed)
        plan = TrainSettings.of(settings, settings.schedule(batches.num_batches), "sft")
        result = fit(model, batches, next_token_loss, plan, out, tokenizer_directory)
    return _summary(result, data)


def _prepare(settings: SftSettings, tokenizer: Tokenizer, folder: Path) -> SampleSet:
    """Write the data that this run learns from and is tested on, and tokenise the former."""
    conversations: list[Mapping[str, Any]] = []
    questions: list[dict[str, Any]] = []
    seed = mix_seed(settings.seed, "tasks")
    for path in settings.files_read():
        conversations += read_conversations(path)
    if settings.chains is not None:
        conversations += train_conversations(settings.chains, seed)
        questions += held_out_questions(settings.chains, seed)
    check_disjoint(conversations, questions)
    _write_jsonl(folder / "train.jsonl", conversations)
    if questions:
        _write_jsonl(folder / "test.jsonl", questions)
    shown = track(conversations, "sft data", unit="conversations")
    data = build_samples(shown, tokenizer, settings.tokens_per_batch)
    if not data.samples:
        raise DataError(
            f"none of {len(conversations)} conversations can be learnt from ({data.num_too_long} "
            f"samples exceed tokens_per_batch = {settings.tokens_per_batch}); raise it or add data"
        )
    return data


def check_disjoint(
    conversations: Iterable[Mapping[str, Any]], questions: Iterable[Mapping[str, Any]]
) -> None:
    """Check that no held-out question is asked in training.

    Raises: DataError naming both records.
    """
    asked = {_user_text(record["messages"]): record["id"] for record in conversations}
    for question in questions:
        twin = asked.get(_user_text(question["prompt"]))
        if twin is not None:
            raise DataError(
                f"held-out question {question['id']} is also asked in training ({twin})"
            )


def _user_text(messages: Iterable[Mapping[str, Any]]) -> str:
    # What is no message is refused, with file and line, when samples are made.
    known = (m for m in messages if isinstance(m, Mapping))
    texts = (str(m.get("content")) for m in known if m.get("role") in ("user", "system"))
    return " ".join(" ".join(texts).lower().split())


def _write_jsonl(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def _summary(result: TrainResult, data: SampleSet) -> dict[str, float]:
    return {
        "steps": float(result.position.step),
        "tokens": float(result.position.tokens),
        "tokens_per_s": result.position.tokens / result.position.elapsed_s,
        "loss": result.last["loss"],
        "samples": float(len(data.samples)),
        "samples_too_long": float(data.num_too_long),
    }
