"""What each part of compression is worth on the tiny parent: one table over several parents.

    python bench/compress_tiny.py runs/tiny --seeds 1 2 3 --out /tmp/compress_tiny

`runs/tiny` is a run of the recipe, finished up to the blend: its curated data are used again. For
every seed a parent is trained. The recipe's search on the first of them says which shape; from each
parent five children are made: cut, compared with it by KL on held-out text, distilled, asked
held-out questions with thinking on.

    importance   as the recipe does it
    random       as much of the same layers, chosen by chance; `kl_chance` is the mean of 12 draws
    scratch      random weights of the same shape, distilled on the same tokens
    depth        about as many parameters, cut in layers alone
    width        the same, cut in widths alone

What is finished in the output folder is not done again.
"""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plait.cli import compress_stage, distill
from plait.cli.run import run_recipe
from plait.cli.text import text_source
from plait.compress.cut import CUT_FILE, Cut
from plait.compress.healing import Yardstick
from plait.compress.prune import prune
from plait.compress.scores import Scores
from plait.core.artifact import write_json
from plait.core.config import read_toml
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.eval.run import Setting, ask, read_questions, summarise
from plait.eval.stage import completions, verifiers_of
from plait.model.hf import load

RECIPE = Path(__file__).parent.parent / "recipes" / "tiny"
NOTHING_CUT = {
    "num_layers": [8, 8, 1],
    "hidden_size": [64, 64, 1],
    "intermediate_size": [192, 192, 1],
    "mamba_num_heads": [4, 4, 2],
}
DEPTH = NOTHING_CUT | {"num_layers": [5, 5, 1], "keep_attention": 1}
WIDTH = NOTHING_CUT | {"hidden_size": [52, 52, 1], "intermediate_size": [144, 144, 1]}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "importance": {},
    "random": {"compress": {"importance": "random"}},
    "scratch": {"distill": {"from_scratch": True}},
    "depth": {"compress": {"ranges": DEPTH}},
    "width": {"compress": {"ranges": WIDTH}},
}


def stage_of(run: Path, stage: str) -> Path:
    """Return the folder of a stage, or its file in a recipe, whatever its number is."""
    [found] = run.glob(f"[0-9]*_{stage}" + (".toml" if run == RECIPE else ""))
    return found


def settings(stage: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return a stage file's table with changes."""
    table = read_toml(stage_of(RECIPE, stage))
    del table["stage"], table["inputs"]
    return table | changes


def trained_parent(run: Path, out: Path, seed: int) -> Path:
    """Return the run folder of a parent of this seed, trained on the data that `run` curated."""
    folder = out / f"parent-{seed}"
    for stage in ("curate", "tokenizer", "blend"):
        source = stage_of(run, stage)
        if not (copy := folder / "tiny" / source.name).exists():
            shutil.copytree(source, copy)
    run_recipe(RECIPE, folder, [f"pretrain.seed={seed}", f"sft.seed={seed}"], until="sft")
    return folder / "tiny"


def searched_shape(parent: Path, search: Path) -> dict[str, Any]:
    """Return ranges that allow one shape: what the recipe's search on a parent chooses."""
    if not (search / "candidates.json").exists():
        sft = stage_of(parent, "sft")
        table = compress_stage.CompressSettings.parse(settings("compress", {}), "compress")
        compress_stage.run(table, {"model": sft, "conversations": sft}, search)
    found = json.loads((search / "candidates.json").read_text())
    [child] = [r for r in found["ranked"] if r["name"] == found["finalists"][0]]
    widths = ("hidden_size", "intermediate_size", "mamba_num_heads", "mamba_head_dim")
    ranges = {name: [child[name], child[name], 1] for name in widths}
    depth = len(child["layers"])
    return {"ranges": ranges | {"num_layers": [depth, depth, 1], "keep_attention": 1}}


def accuracy(model: Path, questions: Path, num_questions: int) -> float:
    """Return the share of held-out questions that a model answers, thinking, greedily."""
    way = Setting("think", True, SamplingParams(max_tokens=96, temperature=0.0))
    engine = Engine.from_path(model / "model", max_num_seqs=64)
    asked = read_questions(questions / "data" / "test.jsonl", num_questions)
    given = ask(asked, way, partial(completions, engine), verifiers_of(asked))
    return summarise(way, given).overall.accuracy


def make_child(
    parent: Path, out: Path, name: str, seed: int, shape: dict[str, Any]
) -> dict[str, float]:
    """Cut and distil one variant into `out`; return what the two stages measured."""
    sft = stage_of(parent, "sft")
    changes = shape | VARIANTS[name].get("compress", {})
    one = {"max_ranked": 1, "top_k": 1, "memory": "1GiB", "seed": seed}
    table = compress_stage.CompressSettings.parse(settings("compress", changes | one), "compress")
    cut = compress_stage.run(table, {"model": sft, "conversations": sft}, out / "cut")
    changes = VARIANTS[name].get("distill", {}) | {"seed": seed}
    table = distill.DistillSettings.parse(settings("distill", changes), "distill")
    texts = {"conversations": sft, "blend": stage_of(parent, "blend")}
    distilled = distill.run(table, texts | {"student": out / "cut", "teacher": sft}, out / "child")
    return {
        "parameters": cut["parameters"],
        "kl_cut": cut["kl"],
        "distilled_tokens": distilled["tokens"],
        "distilled_loss": distilled["loss"],
    }


def kl_by_chance(parent: Path, cut: Path, seed: int) -> dict[str, float]:
    """Return KL to the parent on rows after those of the cut: by importance, by chance 12 times."""
    sft = stage_of(parent, "sft")
    model, scores = load(sft / "model").requires_grad_(False), Scores.read(cut / "scores")
    text = text_source({"conversations": sft}, sft / "model", 0.7)(512, 1, 400, seed)
    rows = [next(text) for _ in range(82)][66:]
    yardstick, child = Yardstick(model, rows), Cut.read(cut / "model" / CUT_FILE)
    found = []
    for each in (scores, *(scores.shuffled(number) for number in range(12))):
        chosen = each.cut(child.shape(model.spec), model.spec)
        found.append(yardstick.kl(prune(model, chosen, each.corrections(chosen))))
    return {"kl_importance": found[0], "kl_chance": mean(found[1:]), "kl_luckiest": min(found[1:])}


def measure(
    options: argparse.Namespace, parent: Path, shape: dict[str, Any], seed: int
) -> dict[str, dict[str, float]]:
    """Return what was found out about the parent of a seed and its children."""
    out, sft = options.out, stage_of(parent, "sft")
    found: dict[str, dict[str, float]] = {}
    for name in ("parent", *options.variants):
        result = out / f"{name}-{seed}.json"
        if not result.exists():
            child = out / f"{name}-{seed}"
            facts = {}
            if name != "parent":
                facts = make_child(parent, child, name, seed, shape)
            if name == "random":
                facts |= kl_by_chance(parent, child / "cut", seed)
            model = sft if name == "parent" else child / "child"
            write_json(result, facts | {"accuracy": accuracy(model, sft, options.questions)})
        found[name] = json.loads(result.read_text())
        if name != "parent":
            found[name]["recovered"] = found[name]["accuracy"] / found["parent"]["accuracy"]
    return found


def main() -> None:
    """Print every figure of every variant: mean, spread, and the value of each parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    parents = {seed: trained_parent(options.run, options.out, seed) for seed in options.seeds}
    shape = searched_shape(parents[options.seeds[0]], options.out / "search")
    found = [measure(options, parent, shape, seed) for seed, parent in parents.items()]
    for name in ("parent", *options.variants):
        for key in found[0][name]:
            values = [parent[name][key] for parent in found]
            spread = stdev(values) if len(values) > 1 else 0.0
            listed = "  ".join(f"{value:,.4g}" for value in values)
            print(f"{name:<11} {key:<17} {mean(values):12,.4f} +- {spread:<8.4f} {listed}")


if __name__ == "__main__":
    main()
