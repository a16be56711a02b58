"""What each alignment stage of recipes/tiny changes on held-out items, over several seeds.

    python bench/align_tiny.py runs/tiny /tmp/align_tiny 1        # one seed
    python bench/align_tiny.py runs/tiny /tmp/align_tiny 1 2 3    # all, and their table

Takes the pretrained model of a finished tiny recipe and for each seed runs the recipe's stages of
alignment with that seed (1 is the recipe's own), and two controls at equal tokens: the second stage
with its samples joined in rows (packed apart is the same loss, see align/sft_test.py), the third
without cut traces. What is finished is not run again, and an interrupted call goes on where it was.
All is run on one thread, so seeds may be run beside each other. Ends with a table: for each figure
its mean and its values by seed.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from plait.cli.run import Stage, check_recipe, run_stage
from plait.core.artifact import write_json
from plait.core.recipe import read_recipe
from plait.core.run_folder import read_manifest
from plait.engine.engine import Engine
from plait.eval.panel import panel_scores
from plait.eval.run import ask, read_questions, summarise
from plait.eval.stage import FREE, EvalSettings, completions, verifiers_of

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny"
TRAINED = ("sft", "sft_tools", "sft_long", "ifeval_rl", "dpo", "reward", "rlhf", "merge")
VARIANTS = {
    "sft_tools": {"joined": ['packing="joined"']},
    "sft_long": {"uncut": ["chains.truncated_share=0.0"]},
}
NO_MODEL = ("reward",)
"""Checkpoints that answer nothing."""
OVER_BUDGETS = ("sft", "sft_long", "sft_long.uncut", "merge")
NUM_BUDGET_QUESTIONS = 192
REPORTED = {
    "ifeval_rl": ("before.reward.no_think", "after.reward.no_think", "max_logprob_gap"),
    "dpo": ("held_out.reward.no_think.round_",),
    "reward": ("held_out.accuracy",),
    "rlhf": ("before.gold.", "after.gold.", "last.gold.", "chosen_step", "max_logprob_gap"),
    "merge": ("alpha", "kept", "score."),
}
"""What the table takes from the stages' own held-out figures, by the beginning of their names."""


def stages_of(seed: int, *changes: str) -> dict[str, Stage]:
    """Return the recipe's stages with this seed, on one thread, and with some changes."""
    overrides = [f"{key}.seed={100 * seed + n}" for n, key in enumerate(TRAINED)]
    overrides += [f"{key}.num_threads=1" for key in TRAINED]
    overrides.append(f"dpo.rounds.seed={100 * seed}")
    recipe = read_recipe(RECIPE, [*overrides, *changes])
    return {stage.file.key: stage for stage in check_recipe(recipe)}


def train(given: Path, out: Path, seed: int) -> dict[str, Path]:
    """Run the stages and the variants of one seed; return every folder by name."""
    folders = {"pretrain": given / "04_pretrain"}
    for key in TRAINED:
        folders[key] = run_stage(stages_of(seed)[key], out, folders)
    for key, variants in VARIANTS.items():
        for variant, changes in variants.items():
            stage = stages_of(seed, *(f"{key}.{change}" for change in changes))[key]
            folders[f"{key}.{variant}"] = run_stage(stage, out / variant, folders)
    del folders["pretrain"]
    return folders


def measure(name: str, folders: dict[str, Path], settings: EvalSettings) -> dict[str, float]:
    """Return a checkpoint's scores on the panel, and over budgets where they are the question."""
    engine = Engine.from_path(folders[name] / "model", max_num_seqs=64, max_context=1024)
    generate = partial(completions, engine)
    asked = read_questions(folders["sft_tools"] / "data" / "test.jsonl")
    scores = panel_scores(asked, generate, verifiers_of(asked), settings.max_tokens)
    asked = read_questions(folders["sft"] / "data" / "test.jsonl", NUM_BUDGET_QUESTIONS)
    for way in settings.ways_of_asking() if name in OVER_BUDGETS else []:
        if way.name.endswith(FREE):
            answers = ask(asked, way, generate, verifiers_of(asked))
            result, setting = summarise(way, answers), way.name.removesuffix(FREE)
            kept = [answer.score for answer in answers if answer.well_formed]
            scores[f"accuracy.{setting}"] = result.overall.accuracy
            scores[f"well_formed.{setting}"] = result.well_formed
            scores[f"right_and_well_formed.{setting}"] = sum(kept) / len(answers)
            scores[f"accuracy.{setting}.last"] = result.families["last"].accuracy
    return scores


def figures(folders: dict[str, Path], settings: EvalSettings) -> dict[str, float]:
    """Return all figures of a seed by name, `<checkpoint>.<score>`."""
    found: dict[str, float] = {}
    for name, folder in folders.items():
        metrics = read_manifest(folder)["metrics"]
        reported = REPORTED.get(name.partition(".")[0], ())
        chosen = {key: v for key, v in metrics.items() if key.startswith(reported)}
        if name not in NO_MODEL:
            file = folder / "scores.json"
            if not file.exists():
                write_json(file, measure(name, folders, settings))
            chosen |= json.loads(file.read_text(encoding="utf-8"))
        found |= {f"{name}.{key}": value for key, value in chosen.items()}
    return found


def table(by_seed: dict[int, dict[str, float]]) -> str:
    """Return the figures of all seeds as a table in Markdown."""
    seeds = " / ".join(map(str, by_seed))
    lines = [f"| figure | mean | seeds {seeds} |", "|---|---|---|"]
    for name in next(iter(by_seed.values())):
        values = [each[name] for each in by_seed.values() if name in each]
        shown = " / ".join(f"{value:.3g}" for value in values)
        lines.append(f"| {name} | {sum(values) / len(values):.3g} | {shown} |")
    return "\n".join(lines)


def main(given: Path, out: Path, seeds: list[int]) -> None:
    """Train and measure every seed, one after another."""
    torch.set_num_threads(1)
    settings = stages_of(0)["eval"].settings
    assert isinstance(settings, EvalSettings)
    by_seed = {seed: figures(train(given, out / f"seed_{seed}", seed), settings) for seed in seeds}
    print(table(by_seed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]] or [1])
