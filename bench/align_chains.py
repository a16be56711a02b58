"""Does GRPO raise held-out accuracy, and what lies between two checkpoints?

    python bench/align_chains.py runs/tiny /tmp/align

Takes the fine-tuned model of a finished tiny recipe (accuracy near 1) and first spoils it on
purpose: a short fine-tuning on keyed chains in which each running value is replaced by a random
digit with probability SPOILT, so that sampled accuracy falls to where reinforcement can work. Then
GRPO on training questions, scored on held-out ones, and a merge sweep between spoilt and
reinforced model. One answer is sampled at temperature 1 for each held-out question.
"""

import json
import random
import sys
from pathlib import Path

from plait.align import grpo_stage, merge_stage, sft_stage
from plait.align.chains import ChainSettings, chain_item, held_out_questions
from plait.core.artifact import write_atomic
from plait.core.seed import mix_seed

SPOILT = 0.2
NUM_SPOILT = 3000
NUM_TEST = 300
CHAINS = {"num_train": 3000, "num_test": NUM_TEST}


def spoilt_conversations(seed: int) -> list[dict]:
    """Return conversations whose traces go wrong now and then."""
    settings = ChainSettings(**CHAINS)
    records = []
    for index in range(NUM_SPOILT):
        item = chain_item(settings, mix_seed(seed, "spoilt"), "train", index)
        rng = random.Random(mix_seed(seed, "spoilt", index))
        value, lines = 0, []
        for letter in item.chain:
            digit = item.digits[letter]
            steps = {
                "sum": (value + digit) % 10,
                "count": value + int(digit >= 5),
                "largest": max(value, digit),
            }
            value = rng.randrange(10) if rng.random() < SPOILT else steps[item.family]
            lines.append(f"{letter}{digit} {item.family} {value}")
        answer = {
            "role": "assistant",
            "content": f"Answer: {value}",
            "reasoning_content": "\n".join(lines),
        }
        records.append({"messages": [{"role": "user", "content": item.question}, answer]})
    return records


def write(file: Path, records) -> str:
    """Write JSONL and return the file's name."""
    write_atomic(file, "".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def main(run: Path, out: Path, seed: int) -> None:
    """Spoil, reinforce, merge."""
    spoilt = write(out / "spoilt.jsonl", spoilt_conversations(seed))
    table = {
        "files": [spoilt],
        "learning_rate": 1e-3,
        "decay_share": 0.5,
        "tokens_per_batch": 3072,
        "num_threads": 1,
        "seed": seed,
    }
    settings = sft_stage.SftSettings.parse(table, "spoil")
    sft_stage.run(settings, {"model": run / "05_sft"}, out / "spoilt")

    table = {
        "chains": CHAINS,
        "num_steps": 45,
        "group_size": 8,
        "prompts_per_batch": 8,
        "max_tokens": 80,
        "thinking_share": 1.0,
        "learning_rate": 5e-4,
        "warmup_steps": 5,
        "evaluate_every_steps": 15,
        "num_threads": 1,
        "seed": seed,
        "adamw": {"weight_decay": 0.0},
    }
    settings = grpo_stage.GrpoSettings.parse(table, "grpo")
    grpo_stage.run(settings, {"model": out / "spoilt"}, out / "grpo")
    gaps = []
    for line in (out / "grpo" / "metrics.jsonl").read_text().splitlines():
        figures = json.loads(line)
        if "eval.reward.think" in figures:
            print(f"step {figures['step']:3}: held-out accuracy {figures['eval.reward.think']:.3f}")
        else:
            gaps.append(figures["max_logprob_gap"])
    print(f"max |difference of log-probabilities| over {len(gaps)} steps: {max(gaps):.1e}")

    held_out = held_out_questions(ChainSettings(**CHAINS), mix_seed(seed, "tasks"))
    table = {
        "files": [write(out / "test.jsonl", held_out)],
        "alphas": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        "temperature": 1.0,
        "max_tokens": 80,
        "num_threads": 1,
    }
    settings = merge_stage.MergeSettings.parse(table, "merge")
    inputs = {"model": out / "spoilt", "other": out / "grpo"}
    for name, value in merge_stage.run(settings, inputs, out / "merge").items():
        print(f"merge {name}: {value:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 1)
