"""What each alignment stage of recipes/tiny changes, over several seeds.

    python bench/align_tiny.py runs/tiny /tmp/align_tiny 1 2 3

Takes the pretrained model of a finished tiny recipe and, for each seed, runs the recipe's stages of
fine-tuning and instruction RL with that seed, and two controls: the second stage with its samples
packed and joined instead of apart, the third without cut traces. Prints a line of JSON for every
seed and checkpoint; what is finished is not run again.
"""

import json
import sys
from pathlib import Path

import torch

from plait.cli.run import Stage, check_recipe, run_stage
from plait.core.artifact import write_json
from plait.core.recipe import read_recipe
from plait.engine.engine import Engine
from plait.eval.panel import panel_scores
from plait.eval.run import ask, read_questions, summarise
from plait.eval.stage import FREE, EvalSettings, answers_of
from plait.grade.verifiers import VERIFIERS, load_verifier

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny"
TRAINED = ("sft", "sft_tools", "sft_long", "ifeval_rl")
CONTROLS = {
    "sft_tools": {"packed": 'packing="separate"', "joined": 'packing="joined"'},
    "sft_long": {"uncut": "chains.truncated_share=0.0"},
}
NUM_BUDGET_QUESTIONS = 192


def stages_of(seed: int, *changes: str) -> dict[str, Stage]:
    """Return the recipe's stages with this seed and some changes."""
    overrides = [f"{key}.seed={100 * seed + n}" for n, key in enumerate(TRAINED)]
    recipe = read_recipe(RECIPE, [*overrides, *changes])
    return {stage.file.key: stage for stage in check_recipe(recipe)}


def train(given: Path, out: Path, seed: int) -> dict[str, Path]:
    """Run the stages and the controls of one seed; return every checkpoint by name."""
    folders = {"pretrain": given / "04_pretrain"}
    for key in TRAINED:
        folders[key] = run_stage(stages_of(seed)[key], out, folders)
    for key, controls in CONTROLS.items():
        for control, change in controls.items():
            stage = stages_of(seed, f"{key}.{change}")[key]
            folders[f"{key}.{control}"] = run_stage(stage, out / control, folders)
    del folders["pretrain"]
    return folders


def measure(checkpoint: Path, panel: Path, questions: Path, settings: EvalSettings) -> dict:
    """Return the panel's scores, and accuracy and well-formedness at every budget."""
    engine = Engine.from_path(checkpoint / "model", max_num_seqs=64, max_context=1024)
    answer = answers_of(engine)
    asked = read_questions(panel)
    verifiers = {q.verifier: load_verifier(VERIFIERS[q.verifier]) for q in asked}
    scores = panel_scores(asked, answer, verifiers, settings.max_tokens)
    asked = read_questions(questions, NUM_BUDGET_QUESTIONS)
    for way in settings.ways_of_asking():
        if way.name.endswith(FREE):
            result = summarise(way, ask(asked, way, engine.generate, verifiers))
            name = way.name.removesuffix(FREE)
            scores[f"accuracy.{name}"] = result.overall.accuracy
            scores[f"well_formed.{name}"] = result.well_formed
            for family, mean in result.families.items():
                scores[f"accuracy.{name}.{family}"] = mean.accuracy
    return scores


def main(given: Path, out: Path, seeds: list[int]) -> None:
    """Train and measure every seed, one after another."""
    torch.set_num_threads(1)
    settings = stages_of(0)["eval"].settings
    assert isinstance(settings, EvalSettings)
    for seed in seeds:
        folders = train(given, out / f"seed_{seed}", seed)
        panel, questions = folders["sft_tools"], folders["sft"]
        for name, folder in folders.items():
            file = folder / "scores.json"
            if not file.exists():
                scores = measure(
                    folder, panel / "data/test.jsonl", questions / "data/test.jsonl", settings
                )
                write_json(file, scores)
            print(json.dumps({"seed": seed, "checkpoint": name, **json.loads(file.read_text())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]] or [1])
