"""The stage `distill`: a student learns from its teacher, sequences getting longer in phases.

Reads `student` and `teacher` (run folders or model directories) and text: `conversations`, and
`documents` or a `blend` of them, in a fixed proportion of tokens. Writes `model/`. The text reaches
this module as a function, because conversations are read by another room: `cli/distill` has the
stage's `run`.
"""

from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, field_validator

from plait.compress.batches import Sequel
from plait.compress.distill import check_pair, online_loss, stored_loss
from plait.compress.frozen import FrozenDtype, freeze
from plait.compress.teacher import Taught, store
from plait.core.config import Settings
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.model.hf import load
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.train import parallel
from plait.train.fit import fit, load_masters, session
from plait.train.loop import Batches, LoopSettings, LossFunction, TrainSettings
from plait.train.precision import Precision, set_precision
from plait.train.schedule import Schedule

PositiveInt = Annotated[int, Field(gt=0)]


@runtime_checkable
class TextSource(Protocol):
    """Text that was asked for by name, as packed batches of a model's tokens."""

    def __call__(
        self,
        sequence_tokens: int,
        rows_per_batch: int,
        num_batches: int,
        seed: int,
        *,
        num_new: int = 0,
    ) -> Batches:
        """Return at least `num_batches` batches of about sequence_tokens * rows_per_batch tokens.

        Raises: DataError if text is repeated before `num_new` batches full of tokens were read.
        """
        ...


class Phase(Settings):
    """A stretch of training at one length."""

    tokens: PositiveInt
    """Length of the phase, rounded to whole optimizer steps."""
    sequence_tokens: PositiveInt
    """Longest sequence: rows of a blend are cut here, longer conversations are left out."""
    rows_per_batch: PositiveInt
    """Rows in a micro-batch; of conversations, as many tokens as these rows have."""


class DistillSettings(LoopSettings):
    """Settings of the stage `distill`."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    """One after another."""
    conversation_share: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of batches made of conversations, where there is a blend too (report, table 11)."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Rate at the end of the decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear rise."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the steps after the warm-up in which the rate falls. Our choice."""
    decay_shape: Literal["linear", "cosine"] = "cosine"
    """Path of the fall."""
    teacher_top_k: PositiveInt | None = None
    """None: the teacher runs beside the student, full vocabulary. A number: it first reads all
    batches and so many of its likeliest tokens are stored, everything else being one tail."""
    teacher_weights: FrozenDtype | None = None
    """None: the dtype of activations. In eight bits the teacher takes half of bfloat16's memory."""
    from_scratch: bool = False
    """Forget the student's weights and keep its shape: what the cut itself is worth."""
    precision: Precision = "float32"
    """Dtype of activations and of the teacher; the student's parameters are float32 in any case."""
    seed: int = 0
    """Of the order of documents, and of the weights if from scratch."""
    num_threads: PositiveInt | None = None
    """Processor threads; None for torch's own choice."""

    @field_validator("phases")
    @classmethod
    def _lengthens(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        lengths = [phase.sequence_tokens for phase in phases]
        if lengths != sorted(lengths):
            raise ValueError(f"sequences get longer from phase to phase, these do not: {lengths}")
        return phases

    def steps(self, phase: Phase) -> int:
        """Return the optimizer steps of a phase."""
        per_step = phase.sequence_tokens * phase.rows_per_batch * self.accumulation
        return max(1, round(phase.tokens / per_step))

    @property
    def schedule(self) -> Schedule:
        """The schedule over all phases."""
        num_steps = sum(self.steps(phase) for phase in self.phases)
        warmup_steps = min(self.warmup_steps, num_steps - 1)
        return Schedule(
            num_steps=num_steps,
            learning_rate=self.learning_rate,
            min_learning_rate=self.min_learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=round((num_steps - warmup_steps) * self.decay_share),
            decay_shape=self.decay_shape,
        )

    def batches(self, source: TextSource) -> Sequel:
        """Return the batches of all phases."""
        numbers = [self.steps(phase) * self.accumulation for phase in self.phases]
        parts = [
            source(phase.sequence_tokens, phase.rows_per_batch, number, mix_seed(self.seed, index))
            for index, (phase, number) in enumerate(zip(self.phases, numbers, strict=True))
        ]
        return Sequel(parts, numbers)


def distill(
    settings: DistillSettings, inputs: dict[str, Path], out: Path, source: TextSource
) -> dict[str, float]:
    """Train `inputs["student"]` on what `inputs["teacher"]` predicts; write `out/model`.

    Raises: ConfigError if the two have different vocabularies; DataError for unusable text.
    """
    student_directory = model_directory(inputs["student"])
    with session(settings.num_threads):
        student = set_precision(load_masters(student_directory), settings.precision)
        if settings.from_scratch:
            init_weights(student, mix_seed(settings.seed, "weights"))
        teacher = _teacher(settings, inputs["teacher"])
        check_pair(teacher, student)
        loss, batches = _lesson(settings, teacher, source, out)
        del teacher
        plan = TrainSettings.of(settings, settings.schedule, "distill")
        result = fit(student, batches, loss, plan, out, student_directory)
    return result.summary()


def _teacher(settings: DistillSettings, directory: Path) -> HybridLM:
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.precision]
    teacher = load(model_directory(directory), dtype=dtype)
    if settings.teacher_weights is not None:
        freeze(teacher, settings.teacher_weights)
    return teacher.to(parallel.device())  # only now: a device need not hold the wider weights


def _lesson(
    settings: DistillSettings, teacher: HybridLM, source: TextSource, out: Path
) -> tuple[LossFunction, Batches]:
    """Return the loss and what it is taken on: a teacher beside the student or its stored words."""
    batches = settings.batches(source)
    if settings.teacher_top_k is None:
        return online_loss(teacher), batches
    folder = out / "checkpoints" / "teacher"
    num_batches = settings.schedule.num_steps * settings.accumulation
    if parallel.is_main():
        store(teacher, settings.batches(source), num_batches, settings.teacher_top_k, folder)
    parallel.any_process(False)  # the others wait for the files
    return stored_loss, Taught(batches, folder)
