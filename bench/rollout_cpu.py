"""Rollouts on a processor, beside transformers' `generate` on the same weights and prompts.

64 sequences, 8 answers to each of 8 prompts, temperature 1, nothing filtered, float32. Prompts are
of different lengths, and each answer stops at a length of its own; two ways to draw them:

    even        any number from 16 to 256 tokens
    end token   as if every token ended the answer with the same probability, 128 on average, up to
                512: what a model with an end token does, where few answers are long

Ours is `sample_groups`, which GRPO, DPO and the reward model's prompts are sampled by, with the
log-probability of every token. theirs is one call of `generate` with left padding, a criterion that
ends each row, and no log-probabilities. Both sides run in one process, turn by turn, with the same
number of threads; medians of rounds, and the ratio is the median of the rounds' ratios. Before
anything is timed, both must give the same greedy tokens from the padded prompts.

`gain of stopping` is what a batch that runs to its longest answer wastes: longest / mean. The rest
of the ratio is the speed of a step.

Target: >= 3x.

    .venv/bin/python bench/rollout_cpu.py [--quick] [--shape 5M|117M] [--out FILE]
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from serve_cpu import NumberTokenizer, duel, random_ids
from train_cpu import LARGE, QUICK, SMALL, build, facts, foreign

from plait.align.rollout import Prompt
from plait.align.sampling import sample_groups
from plait.align.verify import Outcome
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.model.lm import HybridLM

SHAPES = {"5M": SMALL, "117M": LARGE}
MAX_CONTEXT = 1024
GROUP_SIZE = 8


class Load(NamedTuple):
    """Prompts, and how long each answer is."""

    prompts: list[list[int]]
    lengths: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens to generate."""
        return sum(self.lengths)


class Numbers(NumberTokenizer):
    """Conversations whose only message is a list of ids."""

    def encode_conversation(self, messages: Any, **_: Any) -> list[int]:
        """Return the ids."""
        return messages[0]["content"]

    def decode(self, ids: Sequence[int]) -> str:
        """Return nothing: no judge reads it."""
        return ""


class Ragged:
    """An engine whose answers end after given numbers of tokens, in the order of submission."""

    def __init__(self, engine: Engine, lengths: Sequence[int]) -> None:
        self._engine, self._lengths = engine, iter(lengths)
        self.tokenizer, self.max_context = engine.tokenizer, engine.max_context
        self.step = engine.step

    def submit(self, prompt: list[int], params: SamplingParams) -> Any:
        """Submit with the next length."""
        own = {"max_tokens": next(self._lengths), "ignore_eos": True}
        return self._engine.submit(prompt, params.model_copy(update=own))


def even_lengths(count: int) -> list[int]:
    """Return lengths from 16 to 256, all equally likely."""
    return torch.randint(16, 257, (count,), generator=torch.Generator().manual_seed(3)).tolist()


def end_token_lengths(count: int) -> list[int]:
    """Return lengths of answers that end with probability 1 / 128 at every token."""
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(3)).log() * -128
    return drawn.clamp(1, 512).long().tolist()


def sample_ours(engine: Engine, load: Load) -> int:
    """Sample with groups, and return the number of tokens."""
    prompts = [
        Prompt(str(i), [{"role": "user", "content": ids}], None, "", "")
        for i, ids in enumerate(load.prompts)
    ]
    groups = sample_groups(
        Ragged(engine, load.lengths),
        prompts,
        GROUP_SIZE,
        SamplingParams(max_tokens=1),
        lambda _: False,
        lambda *_: lambda: Outcome(0.0, ""),
        seed=0,
    )
    engine.reset()  # the next round must not find these prompts read
    return sum(len(rollout.token_ids) for group in groups for rollout in group)


def padded(load: Load) -> tuple[torch.Tensor, torch.Tensor]:
    """Return every prompt GROUP_SIZE times, padded on the left, and its mask."""
    longest = max(map(len, load.prompts))
    rows = [ids for ids in load.prompts for _ in range(GROUP_SIZE)]
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask


@torch.inference_mode()
def sample_theirs(model: Any, load: Load) -> int:
    """Sample with generate, and return the number of tokens."""
    tokens, mask = padded(load)
    lengths, prompt_tokens = torch.tensor(load.lengths), tokens.shape[1]

    def ended(ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        return ids.shape[1] - prompt_tokens >= lengths

    model.generate(
        tokens,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(load.lengths),
        pad_token_id=0,
        eos_token_id=None,
        stopping_criteria=[ended],
    )
    return load.num_tokens


@torch.inference_mode()
def check_same(engine: Engine, theirs: Any, load: Load, num_tokens: int = 8) -> None:
    """Stop unless both sides continue the prompts alike where nothing is drawn."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    ours = [completion.token_ids for completion in engine.generate(load.prompts, params)]
    engine.reset()
    tokens, mask = padded(load)
    found = theirs.generate(
        tokens[::GROUP_SIZE],
        attention_mask=mask[::GROUP_SIZE],
        do_sample=False,
        max_new_tokens=num_tokens,
        pad_token_id=0,
        eos_token_id=None,
    )[:, tokens.shape[1] :].tolist()
    if ours != found:
        sys.exit("greedy tokens differ: nothing to time")


def row(name: str, model: HybridLM, engine: Engine, theirs: Any, load: Load, rounds: int) -> str:
    """Time one load; return its line of the table."""
    times = duel(lambda: sample_ours(engine, load), lambda: sample_theirs(theirs, load), rounds)
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    ours, other = (load.num_tokens / statistics.median(side) for side in times)
    millions = model.spec.num_parameters / 1e6
    waste = max(load.lengths) / statistics.mean(load.lengths)
    return (
        f"| {millions:.1f}M, {name}, {load.num_tokens:,} tokens | {ours:,.0f} | {other:,.0f} "
        f"| {statistics.median(ratios):.2f} | {ratios[0]:.2f} - {ratios[-1]:.2f} | {waste:.2f} |"
    )


def profile(engine: Engine, load: Load) -> str:
    """Return the largest shares of our own time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        sample_ours(engine, load)
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    total = sum(times.values())
    largest = sorted(times, key=lambda name: -times[name])[:10]
    return ", ".join(f"{name} {times[name] / total:.0%}" for name in largest)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--shape", choices=SHAPES, default="5M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(QUICK.prefill if options.quick else SHAPES[options.shape])
    theirs = foreign(model).eval()
    engine = Engine(model, Numbers(model.spec.vocab_size), max_num_seqs=64, max_context=MAX_CONTEXT)
    prompts = [random_ids(model, count, count) for count in (96, 32, 160, 64, 128, 48, 112, 80)]
    draws = {"even": even_lengths, "end token": end_token_lengths}
    loads = {name: Load(prompts, draw(64)) for name, draw in draws.items()}
    check_same(engine, theirs, loads["even"])
    lines = [
        "| load | plait tokens/s | transformers tokens/s | ratio | spread | gain of stopping |",
        "|---|---|---|---|---|---|",
    ]
    for name, load in loads.items():
        lines.append(row(name, model, engine, theirs, load, options.rounds))
        sys.stderr.write(f"{lines[-1]}\n")
    shares = f"Our own time, {options.shape}, even: {profile(engine, loads['even'])}."
    report = "\n".join([*(f"- {fact}" for fact in facts(options)), "", *lines, "", shares, ""])
    print(report)
    if options.out is not None:
        options.out.write_text(report)


if __name__ == "__main__":
    main()
