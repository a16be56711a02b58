"""The stage `eval`: what the trained model can do, and what its thinking budget trades.

Asks held-out questions with thinking on, off and under budgets, each twice: with think tags
masked by the engine, as it serves (`think`, `no_think`, `budget_<n>`), and with tags left to the
model (`<setting>.free`), which measures well-formedness instead of enforcing it. Accuracy and
tokens are those of serving; well-formedness is the measured one. Bits per byte come from
pretraining, before its first and after its last step.

Reads `model` (a run folder with `model/` and `data/test.jsonl`; `questions` is the folder of the
latter where it is another one) and, if given, `pretrain` (its `metrics.jsonl`), `uncut` (the
checkpoint before traces were cut short, asked under the same budgets with free tags), `panel` (a
folder whose `data/test.jsonl` has questions of several kinds) and `checkpoints` (the earlier ones
that the panel is also put to). Writes `scores.json` and `answers.jsonl`, the same bytes on every
run.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from plait.core.artifact import write_atomic, write_json
from plait.core.config import Settings
from plait.core.errors import DataError
from plait.core.progress import Progress
from plait.core.recipe import inputs_of
from plait.engine.engine import Engine
from plait.engine.request import Completion, SamplingParams
from plait.eval.check import check_prompts, check_references
from plait.eval.panel import panel_scores
from plait.eval.run import (
    Answer,
    Mean,
    Question,
    Result,
    Setting,
    ask,
    check_verifiers,
    read_questions,
    summarise,
    switched,
)
from plait.grade.verifiers import VERIFIERS, Verifier, load_verifier
from plait.train.fit import session

FREE = ".free"
_BITS = "eval.bits_per_byte."


class EvalSettings(Settings):
    """Settings of the stage `eval`."""

    num_questions: int | None = Field(None, gt=0)
    """Ask only the first ones; None = all."""
    budgets: tuple[int, ...] = (0, 4, 12, 20, 28, 36)
    """Thinking budgets in tokens, rising. A line of a keyed-chain trace takes 8 or 9, so these
    allow 0 to 5 lines; our choice."""
    budget_rule: Literal["newline", "hard"] = "newline"
    """As in serving; newline is the report's rule (section 3.4)."""
    max_tokens: int = Field(128, gt=0)
    """Most tokens of trace and answer together."""
    temperature: float = Field(0.0, ge=0)
    """0 = greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of sampling; without effect when greedy."""
    seed: int = 0
    """Of sampling; without effect when greedy."""
    max_num_seqs: int = Field(64, gt=0)
    """Questions generated at once."""
    num_threads: int | None = Field(None, gt=0)
    """Processor threads; None for torch's own choice."""

    @field_validator("budgets")
    @classmethod
    def _rising(cls, budgets: tuple[int, ...]) -> tuple[int, ...]:
        if any(budget < 0 for budget in budgets) or sorted(set(budgets)) != list(budgets):
            raise ValueError(f"budgets must be rising numbers of tokens, 0 or more: {budgets}")
        return budgets

    def ways_of_asking(self) -> list[Setting]:
        """Return the settings to measure, served ones first, each then with free think tags."""
        params = SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            budget_rule=self.budget_rule,
        )
        served = [Setting("think", True, params), Setting("no_think", False, params)]
        served += [
            Setting(
                f"budget_{budget}",
                True,
                params.model_copy(update={"max_thinking_tokens": budget}),
            )
            for budget in self.budgets
        ]
        free = [
            Setting(name + FREE, thinking, params.model_copy(update={"free_think_tags": True}))
            for name, thinking, params in served
        ]
        return served + free


def run(settings: EvalSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Evaluate `inputs["model"]` on its held-out questions and write scores and answers to `out`.

    Questions and models are checked before anything is generated.
    Raises: DataError for questions that cannot be asked or graded, or for pretraining scores that
    are missing or cannot be read; CheckpointError for a model that is not whole.
    """
    model = inputs["model"]
    before, after = {}, {}
    if "pretrain" in inputs:
        before, after = read_bits_per_byte(inputs["pretrain"] / "metrics.jsonl")
    asked = inputs.get("questions", model) / "data" / "test.jsonl"
    questions = read_questions(asked, settings.num_questions)
    panel = read_questions(inputs["panel"] / "data" / "test.jsonl") if "panel" in inputs else []
    _check(inputs, questions, panel)
    ways = settings.ways_of_asking()
    free = [way for way in ways if way.name.endswith(FREE)]
    with session(settings.num_threads):
        results, answers = _asked(settings, model, questions, ways)
        uncut: list[Result] = []
        if "uncut" in inputs:
            uncut, _ = _asked(settings, inputs["uncut"], questions, free)
        names = row_names([*inputs_of(inputs, "checkpoints"), model])
        rows = _panel(settings, panel, names)
    lines = [json.dumps(answer._asdict(), ensure_ascii=False) + "\n" for answer in answers]
    write_atomic(out / "answers.jsonl", "".join(lines))
    record = {
        "results": [result_record(result) for result in results],
        "uncut": [result_record(result) for result in uncut],
        "panel": rows,
        "bits_per_byte": {"before": before, "after": after},
    }
    write_json(out / "scores.json", record)
    flat = metrics(results, before, after) | {"num_questions": float(len(questions))}
    for result in uncut:
        name = result.setting.name.removesuffix(FREE)
        flat[f"uncut.accuracy.{name}"] = result.overall.accuracy
        flat[f"uncut.well_formed.{name}"] = result.well_formed
        for family, mean in result.families.items():
            flat[f"uncut.accuracy.{name}.{family}"] = mean.accuracy
    for checkpoint, scores in rows.items():
        flat |= {f"panel.{checkpoint}.{name}": value for name, value in scores.items()}
    last = rows.get(names[model], {})
    shown = ("tool_calls.exact", "instructions.strict")
    return flat | {name: last[name] for name in shown if name in last}


def _check(inputs: dict[str, Path], questions: list[Question], panel: list[Question]) -> None:
    """Refuse what no model could be asked or nothing could grade."""
    check_verifiers([*questions, *panel], VERIFIERS)
    check_references([*questions, *panel], verifiers_of([*questions, *panel]))
    # As `ask` puts them: with a switch, of which this is the longer one.
    switched_off = [
        each._replace(prompt=switched(each.prompt, thinking=False)) for each in questions
    ]
    check_prompts(inputs["model"] / "model", [*switched_off, *panel])
    if "uncut" in inputs:
        check_prompts(inputs["uncut"] / "model", switched_off)
    for checkpoint in inputs_of(inputs, "checkpoints") if panel else []:
        check_prompts(checkpoint / "model", panel)


def _asked(
    settings: EvalSettings, model: Path, questions: list[Question], ways: list[Setting]
) -> tuple[list[Result], list[Answer]]:
    """Put the questions to a model in all these ways."""
    verifiers = verifiers_of(questions)
    engine = Engine.from_path(model / "model", max_num_seqs=settings.max_num_seqs)
    generate = partial(completions, engine)
    answers: list[Answer] = []
    results: list[Result] = []
    with Progress(f"eval {model.name}", len(ways) * len(questions), "questions") as progress:
        for way in ways:
            given = ask(questions, way, generate, verifiers, settings.seed)
            answers += given
            results.append(summarise(way, given))
            accuracy = results[-1].overall.accuracy
            progress.advance(len(questions), f"{way.name} {accuracy:.3f}")
    return results, answers


def _panel(
    settings: EvalSettings, questions: list[Question], checkpoints: Mapping[Path, str]
) -> dict[str, dict[str, float]]:
    """Score every checkpoint on the panel's questions, if there are any, under its name."""
    verifiers = verifiers_of(questions)
    rows: dict[str, dict[str, float]] = {}
    for checkpoint, name in checkpoints.items() if questions else []:
        engine = Engine.from_path(checkpoint / "model", max_num_seqs=settings.max_num_seqs)
        answer = partial(completions, engine)
        rows[name] = panel_scores(questions, answer, verifiers, settings.max_tokens)
    return rows


def row_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return what to call folders: their names, with as many parents as tell all of them apart."""
    parts = {folder: folder.absolute().parts for folder in folders}
    for length in range(1, max(map(len, parts.values())) + 1):
        names = {folder: "/".join(whole[-length:]) for folder, whole in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return names


def verifiers_of(questions: Sequence[Question]) -> dict[str, Verifier]:
    """Import the graders that some questions need."""
    return {each.verifier: load_verifier(VERIFIERS[each.verifier]) for each in questions}


def completions(
    engine: Engine,
    questions: Sequence[Question],
    params: SamplingParams | Sequence[SamplingParams],
    thinking: bool | None = None,
) -> list[Completion]:
    """Put questions, with their tools, to an engine; without `thinking`, prompts switch it."""
    prompts = [
        engine.tokenizer.encode_conversation(
            question.prompt, tools=question.tools, enable_thinking=thinking
        )
        for question in questions
    ]
    return engine.generate(prompts, params)


def read_bits_per_byte(file: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return bits per byte by category before pretraining (step 0) and after its last evaluation.

    Raises: DataError if one of them is absent or they differ in categories.
    """
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: no readable metrics of pretraining: {error}") from None
    by_step = {
        line["step"]: {
            key.removeprefix(_BITS): value for key, value in line.items() if key.startswith(_BITS)
        }
        for line in lines
        if any(key.startswith(_BITS) for key in line)
    }
    if 0 not in by_step or len(by_step) < 2 or by_step[0].keys() != by_step[max(by_step)].keys():
        raise DataError(
            f"{file}: needs {_BITS}<category> at step 0 and at a later step, for the same "
            f"categories; found evaluations at steps {sorted(by_step)}: run pretraining again"
        )
    return by_step[0], by_step[max(by_step)]


def metrics(
    results: list[Result], before: dict[str, float], after: dict[str, float]
) -> dict[str, float]:
    """Flatten the results: accuracy and tokens as served, well-formedness as measured."""
    served = [result for result in results if not result.setting.name.endswith(FREE)]
    measured = [result for result in results if result.setting.name.endswith(FREE)]
    flat: dict[str, float] = {}
    for result in served:
        flat[f"accuracy.{result.setting.name}"] = result.overall.accuracy
    flat["well_formed"] = sum(result.well_formed for result in measured) / len(measured)
    flat |= {f"bits_per_byte.{category}": value for category, value in after.items()}
    flat |= {f"bits_per_byte_before.{category}": value for category, value in before.items()}
    flat |= {f"tokens.{result.setting.name}": result.total_tokens for result in served}
    for result in measured:
        flat[f"well_formed.{result.setting.name.removesuffix(FREE)}"] = result.well_formed
    for result in served:
        for family, mean in result.families.items():
            flat[f"accuracy.{result.setting.name}.{family}"] = mean.accuracy
    return flat


def result_record(result: Result) -> dict[str, Any]:
    """Return a result as scores.json holds it."""
    setting = result.setting
    return {
        "setting": setting.name,
        "thinking": setting.thinking,
        "budget": setting.params.max_thinking_tokens,
        "free_think_tags": setting.params.free_think_tags,
        "params": json.loads(setting.params.model_dump_json(exclude_defaults=True)),
        **_mean_record(result.overall),
        "families": {family: _mean_record(mean) for family, mean in result.families.items()},
        "well_formed": result.well_formed,
        "cut_off": result.cut_off,
        "reasoning_tokens": result.reasoning_tokens,
        "total_tokens": result.total_tokens,
    }


def _mean_record(mean: Mean) -> dict[str, float | int]:
    return dict(mean._asdict())
