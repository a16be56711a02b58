"""The engine on a processor, beside transformers' NemotronH of the same weights in bfloat16.

    overhead   share of an engine's decode step that is not the model's forward, batch 1 and 8,
               greedy and sampled at the model card's temperature 0.6 and top-p 0.95
    profile    what takes the time of a decode step
    decode     tokens/s at context 512, batch 1 and 8, greedy
    prefill    tokens/s of a prompt of 4,096 tokens, its first output token included
    chat       time to the first token of the last of 20 turns, with and without prefix reuse

Both sides run in one process, turn by turn, with the same number of threads; medians of rounds, and
a ratio is the median of the rounds' ratios. With one thread, processor time is taken, which other
programs on the machine disturb least. `--shape 1B` needs 10 GiB.

Targets: overhead <= 5 % and <= 2 %, decode >= 1.5x, prefill >= 1.5x, chat <= 0.2x.

    .venv/bin/python bench/serve_cpu.py [--shape 100M|1B|quick] [--only ROWS] [--out FILE]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from train_cpu import LARGE, QUICK, build, check_logits, facts, foreign

from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.model.lm import HybridLM

SHAPES = {
    "100M": LARGE | {"mamba_head_dim": 80},
    "1B": LARGE
    | {
        "mamba_head_dim": 80,
        "mamba_num_heads": 56,
        "hidden_size": 2048,
        "intermediate_size": 7168,
        "num_attention_heads": 15,
        "num_key_value_heads": 3,
        "vocab_size": 32768,
    },
    "quick": QUICK.prefill,
}
"""Hybrids with the 9B's head width P = 80, groups G = 8 and proportions."""
NUM_TURNS, TURN_TOKENS, REPLY_TOKENS, SYSTEM_TOKENS = 20, 60, 100, 300
GREEDY = SamplingParams(temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.6, top_p=0.95, ignore_eos=True)


def clock() -> float:
    """Return seconds: of the processor with one thread, of the clock on the wall with more."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def duel(ours: Callable, theirs: Callable, rounds: int) -> tuple[list[float], list[float]]:
    """Time both in turn, first one first and then the other, after a round of warming up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side in (0, 1) if number % 2 else (1, 0):
            started = clock()
            (ours, theirs)[side]()
            if number:
                times[side].append(clock() - started)
    return times


class NumberTokenizer(Tokenizer):
    """As many one-byte tokens as the model has; ids 0 to 2 are special."""

    def __init__(self, vocab_size: int) -> None:
        self.token_bytes = [b""] * 3 + [bytes([i % 256]) for i in range(vocab_size - 3)]
        self.eos_id, self.end_of_turn_id = 0, 1

    def encode_plain(self, text: str) -> list[int]:
        """Return an id per byte."""
        return [3 + byte for byte in text.encode()]


def random_ids(model: HybridLM, count: int, seed: int) -> list[int]:
    """Return ids without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.spec.vocab_size, (count,), generator=generator).tolist()


def make_engine(model: HybridLM, **options: Any) -> Engine:
    """Return an engine that may hold 8 requests."""
    tokenizer = NumberTokenizer(model.spec.vocab_size)
    return Engine(model, tokenizer, max_num_seqs=8, max_context=8192, **options)


def start_decoding(
    engine: Engine, batch: int, context: int, params: SamplingParams = GREEDY
) -> None:
    """Let `batch` requests of `context` tokens read their prompts."""
    for row in range(batch):
        engine.submit(random_ids(engine.model, context, row), params)
    while engine.stats().num_waiting or any(
        job.generation.num_pending > 1 for job in engine._loop.scheduler.running
    ):
        engine.step()


def overhead_row(
    model: HybridLM, batch: int, context: int, steps: int, params: SamplingParams
) -> str:
    """Time steps and the forwards inside them."""
    engine = make_engine(model, prefix_cache=False)
    start_decoding(engine, batch, context, params)
    inside = 0.0
    forward = model.forward

    def timed(*arguments: Any, **options: Any) -> Any:
        nonlocal inside
        started = clock()
        result = forward(*arguments, **options)
        inside += clock() - started
        return result

    shares, durations = [], []
    model.forward = timed
    for _ in range(steps):
        inside, started = 0.0, clock()
        engine.step()
        durations.append(clock() - started)
        shares.append(1 - inside / durations[-1])
    model.forward = forward
    way = "sampled" if params.temperature else "greedy"
    return (
        f"| overhead, batch {batch}, {way} | {statistics.median(durations) * 1e3:.2f} ms a step "
        f"| {statistics.median(shares):.1%} is not the forward |"
    )


def profile_row(model: HybridLM, batch: int, context: int, steps: int) -> str:
    """Say where the time of a decode step goes: the largest shares of processor time."""
    engine = make_engine(model, prefix_cache=False)
    start_decoding(engine, batch, context)
    for num_steps in (1, steps):  # starting to profile takes time that lands on the first one
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(num_steps):
                engine.step()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    largest = sorted(times, key=lambda name: -times[name])[:6]
    shares = ", ".join(f"{name} {times[name] / total:.0%}" for name in largest)
    return f"| profile, batch {batch} | {shares} | |"


def decodes(
    model: HybridLM, theirs: Any, batch: int, context: int, steps: int
) -> tuple[Callable, Callable]:
    """Return `steps` greedy decode steps of each side."""
    engine = make_engine(model, prefix_cache=False)
    start_decoding(engine, batch, context)
    tokens = torch.tensor([random_ids(model, context, row) for row in range(batch)])
    with torch.inference_mode():
        output = theirs(tokens, use_cache=True, logits_to_keep=1)
    held = {"cache": output.past_key_values, "next": output.logits[:, -1].argmax(-1)}

    def ours() -> None:
        for _ in range(steps):
            engine.step()

    @torch.inference_mode()
    def other() -> None:
        for _ in range(steps):
            output = theirs(held["next"][:, None], past_key_values=held["cache"], use_cache=True)
            held["next"] = output.logits[:, -1].argmax(-1)

    return ours, other


def prefills(model: HybridLM, theirs: Any, num_tokens: int) -> tuple[Callable, Callable]:
    """Return a prompt and its first token on each side."""
    engine = make_engine(model, prefix_cache=False)
    prompt = random_ids(model, num_tokens, 0)
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=1)
    tokens = torch.tensor([prompt])

    @torch.inference_mode()
    def other() -> None:
        theirs(tokens, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    return lambda: engine.generate([prompt], params), other


def conversation(model: HybridLM, seed: int) -> list[list[int]]:
    """Return the prompt of each turn: a system block, then questions and short replies."""
    prompt = [2, *random_ids(model, SYSTEM_TOKENS, seed)]
    prompts = []
    for turn in range(NUM_TURNS):
        prompt = [*prompt, 2, *random_ids(model, TURN_TOKENS, seed + 10 * turn + 1)]
        prompts.append([*prompt, 2, 5, 6])
        prompt = [*prompt, 2, 5, *random_ids(model, REPLY_TOKENS, seed + 10 * turn + 2)]
    return prompts


def chats(model: HybridLM, rounds: int) -> str:
    """Time the last turn's first token with and without reuse, a new conversation per round."""
    first_token = SamplingParams(temperature=0, ignore_eos=True, max_tokens=1)
    engines = [make_engine(model, prefix_cache=reuse) for reuse in (True, False)]
    times: tuple[list[float], list[float]] = ([], [])
    cached = 0
    for number in range(rounds + 1):
        *earlier, last = conversation(model, 1000 * number)
        engines[0].generate(earlier[:1], first_token)
        for prompt in earlier[1:]:
            engines[0].generate([prompt], first_token)
        for side, engine in enumerate(engines):
            started = clock()
            (completion,) = engine.generate([last], first_token)
            if number:
                times[side].append(clock() - started)
            cached = max(cached, completion.num_cached_tokens)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    on, off = (statistics.median(side) * 1e3 for side in times)
    return (
        f"| chat, turn {NUM_TURNS} of {len(last):,} tokens, {cached:,} reused "
        f"| {on:.0f} ms with reuse, {off:.0f} ms without | {statistics.median(ratios):.3f} |"
    )


def rate_row(name: str, num_tokens: int, times: tuple[list[float], list[float]]) -> str:
    """Return a line of the table: rates of both sides and their ratio."""
    ours, theirs = (num_tokens / statistics.median(side) for side in times)
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    return (
        f"| {name} | {ours:,.0f} tokens/s, transformers {theirs:,.0f} "
        f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f}) |"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="100M", help="quick: does it run?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=32, help="decode steps of a round")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prompt to read")
    parser.add_argument("--only", default="overhead,profile,decode,prefill,chat")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context, prompt = (64, 96) if options.shape == "quick" else (512, options.prompt)
    steps = options.steps
    model = build(SHAPES[options.shape])
    only = options.only.split(",")
    theirs = None
    if {"decode", "prefill"} & set(only):
        theirs = foreign(model).eval()
        check_logits(model, theirs, 257)
        theirs = theirs.to(torch.bfloat16)
    model = model.to(torch.bfloat16).eval()
    lines = [*(f"- {fact}" for fact in facts(options)), "", "| what | figures | ratio |"]
    lines.append("|---|---|---|")

    def add(line: str) -> None:
        lines.append(line)
        sys.stderr.write(f"{line}\n")

    millions = model.spec.num_parameters / 1e6
    for batch in (1, 8):
        if "overhead" in only:
            for params in (GREEDY, SAMPLED):
                add(overhead_row(model, batch, context, 2 * steps, params))
        if "profile" in only:
            add(profile_row(model, batch, context, steps))
        if "decode" in only:
            pair = decodes(model, theirs, batch, context, steps)
            times = duel(*pair, options.rounds)
            add(rate_row(f"decode, {millions:.0f}M, batch {batch}", batch * steps, times))
    if "prefill" in only:
        times = duel(*prefills(model, theirs, prompt), options.rounds)
        add(rate_row(f"prefill, {millions:.0f}M, {prompt:,} tokens", prompt, times))
    if "chat" in only:
        add(chats(model, options.rounds))
    report = "\n".join(["# The engine on a processor", "", *lines, ""])
    print(report)
    if options.out is not None:
        options.out.write_text(report)


if __name__ == "__main__":
    main()
