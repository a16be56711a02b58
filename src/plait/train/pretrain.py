"""The stage `pretrain`: a model from a blend of text, or a later phase of one.

Reads `blend` (shards and phases), `tokenizer` and, to go on from an earlier stage instead of from
random weights, `model`; writes `model/` (a Hugging Face directory with the tokenizer),
`metrics.jsonl` and, while it runs, `checkpoints/`. Lengths are given in tokens, as reports give
them, and rounded to whole optimizer steps.

The long-context phase of the recipe is this stage again: longer sequences, constant learning rate,
`model` from the stage before.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from plait.core.errors import ConfigError
from plait.core.seed import mix_seed
from plait.data.blend import Blend
from plait.data.loader import BlendLoader
from plait.data.tokenizer import Tokenizer
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train import parallel
from plait.train.evaluate import validation_bits_per_byte
from plait.train.fit import fit, load_masters, session
from plait.train.loop import LoopSettings, TrainResult, TrainSettings
from plait.train.losses import next_token_loss
from plait.train.precision import Precision, set_precision
from plait.train.schedule import Schedule

PositiveInt = Annotated[int, Field(gt=0)]


class PretrainSettings(LoopSettings):
    """Settings of the stage `pretrain`.

    Raises: ConfigError for a model that cannot be built or a schedule longer than the run.
    """

    model: str | dict[str, Any] | None = None
    """Preset name or the fields of a ModelSpec; the tokenizer gives the vocabulary. Leave it out
    when the input `model` gives the weights."""
    total_tokens: PositiveInt
    """Length of training."""
    sequence_tokens: PositiveInt
    """Length of a row; documents are cut at row ends."""
    rows_per_batch: PositiveInt
    """Rows in a micro-batch; an optimizer step is rows_per_batch * accumulation rows."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Rate at the end of the decay."""
    warmup_tokens: Annotated[int, Field(ge=0)] = 0
    """Length of the linear rise."""
    decay_tokens: Annotated[int, Field(ge=0)] = 0
    """Length of the fall at the end; 0 for a constant rate."""
    decay_shape: Literal["linear", "cosine"] = "linear"
    """Path of the fall; our choice."""
    precision: Precision = "float32"
    """Dtype of activations; parameters and moments are float32 in any case."""
    evaluation_tokens: PositiveInt = 65536
    """Most validation tokens read per category at each evaluation."""
    seed: int = 0
    """Of the initial weights and of the order of documents."""
    num_threads: PositiveInt | None = None
    """Processor threads; None for torch's own choice. Another number gives other roundings."""

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if model is not None:
            _spec(model, vocab_size=1)
        return model

    @model_validator(mode="after")
    def _check_schedule(self) -> "PretrainSettings":
        _ = self.schedule
        return self

    def spec(self, vocab_size: int, **token_ids: int) -> ModelSpec:
        """Return the shape of the model to be trained from scratch."""
        if self.model is None:
            raise ConfigError("pretrain needs a model: a preset, a table, or an input stage")
        return _spec(self.model, vocab_size=vocab_size, **token_ids)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.sequence_tokens * self.rows_per_batch * self.accumulation

    @property
    def schedule(self) -> Schedule:
        """The schedule in steps: where each part begins and ends is rounded, not its length, so
        that parts which add up to the whole still do."""
        end, decay_begin = self.total_tokens, self.total_tokens - self.decay_tokens
        return Schedule(
            num_steps=max(1, self._steps(end)),
            learning_rate=self.learning_rate,
            min_learning_rate=self.min_learning_rate,
            warmup_steps=self._steps(self.warmup_tokens),
            decay_steps=self._steps(end) - self._steps(decay_begin),
            decay_shape=self.decay_shape,
        )

    def _steps(self, tokens: int) -> int:
        return round(tokens / self.tokens_per_step)


def run(settings: PretrainSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Train on `inputs["blend"]` and write the model to `out/model`.

    Raises: ConfigError if the inputs contradict each other or the settings.
    """
    blend, tokenizer_directory = inputs["blend"], inputs["tokenizer"]
    tokenizer = Tokenizer.from_directory(tokenizer_directory)
    _check_vocabulary(Blend.read(blend).vocab_size, tokenizer, blend)
    plan = TrainSettings.of(settings, settings.schedule, "pretrain")
    loader = BlendLoader(
        blend,
        total_tokens=plan.schedule.num_steps * settings.tokens_per_step,
        sequence_tokens=settings.sequence_tokens,
        rows_per_batch=settings.rows_per_batch,
        seed=mix_seed(settings.seed, "order"),
    )

    def evaluate(model: HybridLM, step: int) -> dict[str, float]:
        row = settings.sequence_tokens * settings.rows_per_batch
        return validation_bits_per_byte(model, blend, row, settings.evaluation_tokens)

    with session(settings.num_threads):
        model = _model(settings, inputs, tokenizer)
        result = fit(
            model, loader, next_token_loss, plan, out, tokenizer_directory, evaluate=evaluate
        )
    epochs = {f"epochs.{name}": number for name, number in loader.epochs().items()}
    return _summary(result) | epochs


def _model(settings: PretrainSettings, inputs: dict[str, Path], tokenizer: Tokenizer) -> HybridLM:
    """Return initial weights: an earlier stage's, or random ones."""
    source = inputs.get("model")
    if (source is None) == (settings.model is None):
        raise ConfigError(
            "pretrain takes its weights from the setting `model` (a preset or table, random "
            "weights) or from the input `model` (an earlier stage): give exactly one of them"
        )
    if source is None:
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        spec = settings.spec(tokenizer.vocab_size, **ids, pad_token_id=tokenizer.pad_id)
        model = init_weights(
            HybridLM(spec, device=parallel.device()), mix_seed(settings.seed, "weights")
        )
    else:
        model = load_masters(source)
        _check_vocabulary(model.spec.vocab_size, tokenizer, source)
    return set_precision(model, settings.precision)


def _summary(result: TrainResult) -> dict[str, float]:
    """Flatten the end of the run, with the first evaluation, if it is known, beside the last."""
    scores = result.evaluations
    before = {f"{name}_before": value for name, value in scores.get(0, {}).items()}
    return result.summary() | scores[result.position.step] | before


def _spec(model: str | dict[str, Any], **fields: int) -> ModelSpec:
    if isinstance(model, str):
        return ModelSpec.preset(model, **fields)
    return ModelSpec.parse(model | fields, "model")


def _check_vocabulary(vocab_size: int, tokenizer: Tokenizer, source: Path) -> None:
    if vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"{source} has a vocabulary of {vocab_size}, the tokenizer one of "
            f"{tokenizer.vocab_size}: both must come from the same tokenizer stage"
        )
