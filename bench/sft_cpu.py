"""A step of fine-tuning on a processor, beside TRL's SFTTrainer on the same weights and samples.

    drawn      samples in random order, padded to the longest of their batch: TRL's default
    grouped    the same samples, those of like length together: `group_by_length`
    equal      samples of one length, so that nothing is padded

Lengths are log-normal, median 128 tokens, from 16 to 1,024, or all 176, which is their mean; the
second half of each sample is learnt. TRL trains transformers' NemotronH (its dt clamp repaired), no
gradient checkpointing; at the end of each of its steps ours takes one on the very samples of that
batch, packed, in the same process with the same number of threads and the same optimizer. TRL's
time is that from the beginning of a step to its end, without drawing its batch; ours includes
packing it. Tokens are those of samples, padding is none. Medians of steps after two that warm up;
the ratio is the median of the steps' ratios, so a disturbance hits both. The first losses must
agree.

`ceiling`: the ratio if everything in our model were free but the products of its linear maps.

Target: >= 2x.

    .venv/bin/python bench/sft_cpu.py [--quick] [--dtype bfloat16] [--out FILE]
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from train_cpu import FULL, LOSS_TOLERANCE, QUICK, build, facts, foreign, products
from transformers import TrainerCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from plait.data.pack import Sample, pack
from plait.model.lm import HybridLM
from plait.train.losses import next_token_loss
from plait.train.optim import AdamWSettings, adamw, set_learning_rate
from plait.train.precision import set_precision
from plait.train.step import divide_and_clip

RATE, CLIP_NORM, NUM_SAMPLES, PER_BATCH, WARM_UP = 1e-4, 1.0, 256, 16, 2
ORDERS = {"drawn": "random", "grouped": "group_by_length", "equal": "random"}


def dataset(vocab_size: int, longest: int, *, equal: bool) -> Dataset:
    """Return tokenised samples whose second half is learnt."""
    generator = torch.Generator().manual_seed(5)
    drawn = (128 * (0.8 * torch.randn(NUM_SAMPLES, generator=generator)).exp()).long()
    if equal:
        drawn[:] = 176
    rows = []
    for length in drawn.clamp(16, longest).tolist():
        ids = torch.randint(3, vocab_size, (length,), generator=generator).tolist()
        learnt = length // 2
        rows.append({"input_ids": ids, "completion_mask": [0] * (length - learnt) + [1] * learnt})
    return Dataset.from_list(rows)


def samples_of(batch: dict[str, torch.Tensor]) -> list[Sample]:
    """Return the samples of TRL's batch without their padding."""
    found = []
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True
    ):
        found.append(Sample(ids[mask].tolist(), (labels[mask] != -100).float().tolist()))
    return found


class Ours:
    """Steps as the stage `sft` makes them."""

    def __init__(self, model: HybridLM) -> None:
        self._model, self._optimizer = model, adamw(model, AdamWSettings(weight_decay=0.0))
        set_learning_rate(self._optimizer, RATE)

    def step(self, samples: list[Sample]) -> float:
        """Learn from a batch and return its mean loss."""
        self._optimizer.zero_grad()
        output = next_token_loss(self._model, pack(samples))
        output.total.backward()
        weight = float(output.weight)
        divide_and_clip(self._model, weight, CLIP_NORM)
        self._optimizer.step()
        return float(output.total.detach()) / weight


class Duel(TrainerCallback):
    """Times TRL's steps, and one of ours after each."""

    def __init__(self, ours: Ours, alone: Callable[[int], Callable]) -> None:
        self.times: tuple[list[float], list[float], list[float]] = ([], [], [])
        self.losses: list[float] = []
        self.num_tokens: list[int] = []
        self.num_padded: list[int] = []
        self.batch: dict[str, torch.Tensor] = {}
        self._ours, self._alone, self._began = ours, alone, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Take the time."""
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Take the time, and our turn."""
        ended = time.perf_counter()
        self.losses.append(self._ours.step(samples_of(self.batch)))
        ours = time.perf_counter()
        num_tokens = int(self.batch["attention_mask"].sum())
        products_of = self._alone(num_tokens)
        began = time.perf_counter()
        products_of()
        found = (ours - ended, ended - self._began, time.perf_counter() - began)
        for times, seconds in zip(self.times, found, strict=True):
            times.append(seconds)
        self.num_tokens.append(num_tokens)
        self.num_padded.append(self.batch["attention_mask"].numel())


def measure(order: str, options: argparse.Namespace) -> str:
    """Train both side by side and return a line of the table."""
    model = build(QUICK.training if options.quick else FULL.training)
    theirs, dtype = foreign(model), getattr(torch, options.dtype)
    set_precision(model, options.dtype)
    duel = Duel(Ours(model), lambda count: products(model, count, dtype, training=True))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            theirs,
            SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=PER_BATCH,
                max_steps=options.rounds + WARM_UP,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                max_grad_norm=CLIP_NORM,
                adam_beta2=AdamWSettings().beta2,
                train_sampling_strategy=ORDERS[order],
                gradient_checkpointing=False,
                bf16=dtype == torch.bfloat16,
                max_length=None,
                save_strategy="no",
                logging_steps=1,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=dataset(
                model.spec.vocab_size, 64 if options.quick else 1024, equal=order == "equal"
            ),
            processing_class=_tokenizer(),
            callbacks=[duel],
        )
        train = trainer.training_step

        def watched(model: Any, batch: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
            duel.batch = dict(batch)
            return train(model, batch, *rest)

        trainer.training_step = watched
        trainer.train()
        first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    if abs(first - duel.losses[0]) > LOSS_TOLERANCE[dtype] * first:
        sys.exit(f"first losses differ, {duel.losses[0]} and {first}: nothing to time")
    millions = model.spec.num_parameters / 1e6
    return row(f"{millions:.1f}M, {PER_BATCH} samples, {order}, {options.dtype}", duel)


def row(name: str, duel: Duel) -> str:
    """Return a line of the table: rates, ratio, its spread, its ceiling, share of padding."""
    tokens = duel.num_tokens[WARM_UP:]
    ours, theirs, alone = (times[WARM_UP:] for times in duel.times)
    rates = [
        statistics.median(n / t for n, t in zip(tokens, times, strict=True))
        for times in (ours, theirs)
    ]
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    ceiling = statistics.median(b / c for b, c in zip(theirs, alone, strict=True))
    padding = 1 - sum(tokens) / sum(duel.num_padded[WARM_UP:])
    return (
        f"| {name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {statistics.median(ratios):.2f} "
        f"| {ratios[0]:.2f} - {ratios[-1]:.2f} | {ceiling:.2f} | {padding:.0%} |"
    )


def _tokenizer() -> Any:
    """Return what TRL asks of a tokenizer where samples come as ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    known = models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(known), pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    lines = [
        "| what | plait tokens/s | TRL tokens/s | ratio | spread | ceiling | padding |",
        "|---|---|---|---|---|---|---|",
    ]
    for order in ORDERS:
        lines.append(measure(order, options))
        sys.stderr.write(f"{lines[-1]}\n")
    report = "\n".join([*(f"- {fact}" for fact in facts(options)), "", *lines, ""])
    print(report)
    if options.out is not None:
        options.out.write_text(report)


if __name__ == "__main__":
    main()
