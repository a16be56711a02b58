"""Do rounds of on-policy DPO raise accuracy on new questions of the training split?

    python bench/align_dpo.py /tmp/align

Starts from the spoilt model that bench/align_chains.py left in OUT/spoilt. Each round samples
eight answers to fresh training questions, pairs a right one with a wrong one, and learns from the
pairs; the sampled accuracy of each round is thus measured before its questions are learnt from.
They come from other seeds, not from the held-out split, and are not compared with earlier ones.
The last line is the accuracy of the final model on questions of a further round.
"""

import sys
from pathlib import Path

from plait.align import dpo_stage, pairs_stage

NUM_ROUNDS = 3
NUM_PROMPTS = 150


def main(out: Path, seed: int) -> None:
    """Alternate sampling and learning."""
    model = out / "spoilt"
    for number in range(NUM_ROUNDS + 1):
        table = {
            "chains": {"num_train": 1000},
            "num_prompts": NUM_PROMPTS,
            "max_tokens": 80,
            "thinking_share": 1.0,
            "num_threads": 1,
            "seed": 100 * seed + number,
        }
        settings = pairs_stage.PairsSettings.parse(table, "pairs")
        pairs = out / f"pairs_{number}"
        figures = pairs_stage.run(settings, {"model": model}, pairs)
        print(
            f"after {number} rounds: accuracy {figures['reward']:.3f}, {figures['pairs']:g} pairs"
        )
        if number == NUM_ROUNDS:
            return
        table = {
            "learning_rate": 3e-4,
            "warmup_steps": 2,
            "num_epochs": 2,
            "tokens_per_batch": 1500,
            "beta": 0.1,
            "num_threads": 1,
            "seed": seed,
        }
        settings = dpo_stage.DpoSettings.parse(table, "dpo")
        learnt = out / f"dpo_{number}"
        dpo_stage.run(settings, {"model": model, "pairs": pairs}, learnt)
        model = learnt


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 1)
