"""A distillation step beside what it is made of: the teacher's forward pass and a student's step.

    python bench/distill_cpu.py [--rounds 5]

Prints the ratio (teacher forward with logits + student next-token step) / distillation step, CPU
time of one thread, rounds interleaved so that a busy machine slows both.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from plait.compress.distill import online_loss
from plait.data.pack import Sample, pack
from plait.kernels.cross_entropy import chunked_cross_entropy
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train.losses import next_token_loss
from plait.train.optim import AdamWSettings, adamw

PARENT = {
    "pattern": "M-M*-M-M*-M-",
    "hidden_size": 320,
    "intermediate_size": 1280,
    "vocab_size": 8192,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "attention_head_dim": 40,
    "mamba_num_heads": 16,
    "mamba_head_dim": 40,
    "num_groups": 4,
    "state_size": 32,
}
CHILD = PARENT | {"pattern": "M-M-M*-M-", "hidden_size": 280, "intermediate_size": 960}
NUM_TOKENS = 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    teacher, student = (
        init_weights(HybridLM(ModelSpec.parse(shape, "bench")), 0) for shape in (PARENT, CHILD)
    )
    optimizer = adamw(student, AdamWSettings())
    ids = torch.randint(PARENT["vocab_size"], (NUM_TOKENS,)).tolist()
    batch = pack([Sample(ids, [1.0] * NUM_TOKENS)])
    distil = online_loss(teacher)

    def read() -> None:
        """The teacher's forward pass, logits included, as cheap as logits can be had."""
        with torch.no_grad():
            hidden = teacher.hidden(batch.tokens, cu_seqlens=batch.cu_seqlens)
            head, weights = teacher.lm_head.weight, batch.weights[0]
            chunked_cross_entropy(hidden[0], head, batch.targets[0], weights)

    def step(loss: Callable[..., object]) -> None:
        optimizer.zero_grad()
        loss(student, batch).total.backward()  # pyright: ignore
        optimizer.step()

    times: dict[str, list[float]] = {"teacher": [], "student": [], "distillation": []}
    for _ in range(rounds + 1):
        for name, run in (
            ("teacher", read),
            ("student", lambda: step(next_token_loss)),
            ("distillation", lambda: step(distil)),
        ):
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    found = {name: median(values[1:]) for name, values in times.items()}
    for name, seconds in found.items():
        print(f"{name:<13} {seconds * 1e3:8.1f} ms")
    ratio = (found["teacher"] + found["student"]) / found["distillation"]
    print(f"(teacher + student) / distillation: {ratio:.2f}")


if __name__ == "__main__":
    main()
