"""What each part of compression is worth on the tiny parent: one table from several seeds.

    python bench/compress_tiny.py runs/tiny --seeds 1 2 3 --out /tmp/compress_tiny

For every seed and variant: cut the fine-tuned parent, measure KL to it on held-out text, distil,
ask held-out questions with thinking on. Variants: `importance` as the recipe does it; `random`
keeps as much, chosen by chance; `scratch` distils random weights of the same shape on the same
tokens; `depth` and `width` reach about the same number of parameters along one kind of axis.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plait.cli import compress_stage, distill
from plait.core.artifact import write_json
from plait.core.config import read_toml
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.eval.run import Setting, ask, read_questions, summarise
from plait.eval.stage import VERIFIERS

RECIPE = Path(__file__).parent.parent / "recipes" / "tiny"
ONE_SHAPE = {"max_ranked": 1, "top_k": 1, "memory": "1GiB"}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "importance": {},
    "random": {"compress": {"importance": "random"}},
    "scratch": {"distill": {"from_scratch": True}},
    "depth": {
        "compress": {
            "ranges": {
                "num_layers": [5, 5, 1],
                "keep_attention": 1,
                "hidden_size": [64, 64, 1],
                "intermediate_size": [192, 192, 1],
                "mamba_num_heads": [4, 4, 2],
            }
        }
    },
    "width": {
        "compress": {
            "ranges": {
                "num_layers": [8, 8, 1],
                "hidden_size": [52, 52, 1],
                "intermediate_size": [144, 144, 1],
                "mamba_num_heads": [4, 4, 2],
            }
        }
    },
}


def settings(stage: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return a stage file's table with changes."""
    [file] = RECIPE.glob(f"*_{stage}.toml")
    table = read_toml(file)
    del table["stage"], table["inputs"]
    return table | changes


def shape_of(folder: Path) -> dict[str, Any]:
    """Return ranges that allow one shape, that of a finished search."""
    found = json.loads((folder / "candidates.json").read_text())
    [child] = [r for r in found["ranked"] if r["name"] == found["finalists"][0]]
    widths = ("hidden_size", "intermediate_size", "mamba_num_heads", "mamba_head_dim")
    ranges = {name: [child[name], child[name], 1] for name in widths}
    depth = len(child["layers"])
    return {"ranges": ranges | {"num_layers": [depth, depth, 1], "keep_attention": 1}}


def accuracy(model: Path, questions: Path, num_questions: int, seed: int) -> float:
    """Return the share of held-out questions that a model answers, thinking, greedily."""
    way = Setting("think", True, SamplingParams(max_tokens=96, temperature=0.0))
    engine = Engine.from_path(model / "model", max_num_seqs=64)
    asked = read_questions(questions / "data" / "test.jsonl", num_questions)
    given = ask(asked, way, lambda c, p: engine.generate(c, p), VERIFIERS, seed)
    return summarise(way, given).overall.accuracy


def search(run: Path, out: Path) -> Path:
    """Search once for the shape that all variants but `depth` and `width` have."""
    table = compress_stage.CompressSettings.parse(settings("compress", {}), "compress")
    if not (out / "candidates.json").exists():
        parent = run / "05_sft"
        compress_stage.run(table, {"model": parent, "conversations": parent}, out)
    return out


def measure(
    run: Path, out: Path, name: str, seed: int, num_questions: int, num_tokens: int
) -> dict[str, float]:
    """Cut, distil and ask; what is finished in `out` is not done again."""
    result = out / f"{name}-{seed}.json"
    if result.exists():
        return json.loads(result.read_text())
    inputs = {"conversations": run / "05_sft", "blend": run / "03_blend"}
    changes = ONE_SHAPE | shape_of(search(run, out / "search"))
    changes |= VARIANTS[name].get("compress", {}) | {"seed": seed}
    cut = out / f"{name}-{seed}" / "cut"
    table = compress_stage.CompressSettings.parse(settings("compress", changes), "compress")
    texts = {"conversations": inputs["conversations"]}
    found = compress_stage.run(table, {"model": run / "05_sft", **texts}, cut)
    phases = [{"tokens": num_tokens, "sequence_tokens": 256, "rows_per_batch": 12}]
    changes = VARIANTS[name].get("distill", {}) | {"seed": seed, "phases": phases}
    table = distill.DistillSettings.parse(settings("distill", changes), "distill")
    pair = {"student": cut, "teacher": run / "05_sft"}
    trained = distill.run(table, inputs | pair, out / f"{name}-{seed}" / "child")
    child = out / f"{name}-{seed}" / "child"
    scores = {
        "parameters": found["parameters"],
        "kl_cut": found["kl"],
        "loss_distilled": trained["loss"],
        "accuracy": accuracy(child, run / "05_sft", num_questions, seed),
        "tokens": trained["tokens"],
    }
    write_json(result, scores)
    return scores


def main() -> None:
    """Print mean and spread of every variant over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=400_000, help="of distillation")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    parent = accuracy(given.run / "05_sft", given.run / "05_sft", given.questions, 1)
    print(f"parent: accuracy {parent:.3f}")
    for name in given.variants:
        rows = [
            measure(given.run, given.out, name, seed, given.questions, given.tokens)
            for seed in given.seeds
        ]
        for key in rows[0]:
            values = [row[key] for row in rows]
            spread = stdev(values) if len(values) > 1 else 0.0
            print(f"{name:<11} {key:<15} {mean(values):12.4f} +- {spread:.4f}  {values}")


if __name__ == "__main__":
    main()
