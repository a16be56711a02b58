import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.data.loader import PackedBatch, ValidationBatch
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train.conftest import lines, settings
from plait.train.evaluate import bits_per_byte
from plait.train.loop import train
from plait.train.losses import next_token_loss
from plait.train.precision import set_precision

# Losses of the first steps on the counting pattern. Made by
# python -m plait.train.losses_test > src/plait/train/losses_golden.txt
GOLDEN = Path(__file__).with_name("losses_golden.txt")


def batch_of(lengths, seed=0, vocab=97):
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(lengths)
    tokens = torch.randint(vocab, (1, num_tokens + 1), generator=generator)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    weights = torch.rand(1, num_tokens, generator=generator)
    weights[0, ends[1:] - 1] = 0.0
    return PackedBatch(tokens[:, :-1], tokens[:, 1:], weights, ends.int())


@pytest.fixture
def model():
    return init_weights(HybridLM(ModelSpec.preset("test")), 3)


def test_loss_is_that_of_each_document_alone(model):
    batch = batch_of([9, 1, 14])
    output = next_token_loss(model, batch)
    want = 0.0
    for start, end in ((0, 9), (9, 10), (10, 24)):
        logits = model(batch.tokens[:, start:end])[0].detach().double()
        losses = torch.nn.functional.cross_entropy(
            logits, batch.targets[0, start:end], reduction="none"
        )
        want += (losses * batch.weights[0, start:end]).sum()
    assert float(output.total.detach()) == pytest.approx(float(want), rel=1e-5)
    assert float(output.weight) == pytest.approx(float(batch.weights.sum()))
    assert output.num_tokens == 24


def test_uniform_predictions_cost_the_vocabulary_in_bits(model):
    with torch.no_grad():
        model.lm_head.weight.zero_()
    batches = [batch_of([10], seed)._replace(weights=torch.ones(1, 10)) for seed in range(3)]
    scored = [ValidationBatch(batch, 4) for batch in batches]
    want = 10 * math.log2(97) / 4
    assert bits_per_byte(model, scored) == pytest.approx(want)
    # Stops once enough tokens are read: the third batch would change the mean.
    scored[2] = ValidationBatch(batches[2], 400)
    assert bits_per_byte(model, scored, max_tokens=20) == pytest.approx(want)


class Pattern:
    """Sequences that count up by three."""

    def __init__(self):
        self.number = 0

    def __next__(self):
        starts = np.random.default_rng(self.number).integers(0, 97, 4)
        rows = (starts[:, None] + 3 * np.arange(17)) % 97
        tokens = torch.from_numpy(rows[:, :-1].reshape(1, -1))
        targets = torch.from_numpy(rows[:, 1:].reshape(1, -1))
        self.number += 1
        return PackedBatch(
            tokens, targets, torch.ones(1, 64), torch.arange(0, 65, 16, dtype=torch.int32)
        )

    def state(self):
        return {"number": self.number}

    def load_state(self, state):
        self.number = state["number"]


class Uneven(Pattern):
    """The same with other weights in every batch."""

    def __next__(self):
        batch = super().__next__()
        weights = (torch.arange(64) % (self.number % 7 + 2) == 0).float()[None]
        return batch._replace(weights=weights)


def losses_of(tmp_path, precision, num_steps):
    model = set_precision(init_weights(HybridLM(ModelSpec.preset("test")), 3), precision)
    chosen = settings(
        schedule={"num_steps": num_steps, "learning_rate": 0.01, "warmup_steps": 2},
        accumulation=1,
    )
    train(model, Pattern(), next_token_loss, chosen, tmp_path / precision)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return [line["loss"] for line in lines(tmp_path / precision)]


def test_bfloat16_learns_like_float32_but_is_not_it(tmp_path):
    exact, rounded = (losses_of(tmp_path, name, 11) for name in ("float32", "bfloat16"))
    assert rounded[0] == pytest.approx(math.log(97), rel=0.5)
    assert exact == pytest.approx([float(line) for line in GOLDEN.read_text().split()], rel=1e-3)
    assert rounded[-1] < 0.5 * rounded[0]
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded != pytest.approx(exact, rel=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for loss in losses_of(Path(folder), "float32", 11):
            sys.stdout.write(f"{loss:.6f}\n")
