"""Training, prefill and memory on a processor, beside transformers' NemotronH of the same weights.

    training   tokens/s of forward + backward + AdamW of a ~5M hybrid, rows of 512 tokens
    prefill    tokens/s of a prompt of 4,096 tokens into a fresh state, ~100M hybrid
    memory     peak growth of one forward of the ~100M hybrid at T = 2,048, 4,096 and 8,192

Both sides run in one process, turn by turn, with the same number of threads, in float32 or
bfloat16 (training: float32 masters on both sides, with autocast on transformers'; prefill: bfloat16
weights); medians of rounds, and the ratio is the median of the rounds' ratios, so a disturbance
hits both. The ceiling is the ratio that would be measured if everything in our model were free but
the matrix products of its linear maps, which a third side of the same rounds runs alone. Below each
row stand the largest shares of our side's processor time, as torch's profiler sees them. Before
anything is timed the float32 logits and training losses of both must agree. transformers clamps dt
at `time_step_min` where the checkpoints mean `time_step_limit`; that is repaired first.

Targets: training >= 3x, prefill >= 2.5x, memory linear in T.

    .venv/bin/python bench/train_cpu.py [--quick] [--dtype bfloat16] [--out FILE]
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from plait.data.loader import PackedBatch
from plait.kernels import native
from plait.kernels.linear import multiply, weight_gradient
from plait.model.hf import save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.model.state import HybridState
from plait.train.losses import next_token_loss
from plait.train.optim import AdamWSettings, adamw, set_learning_rate
from plait.train.precision import set_precision

# Proportions of Nemotron Nano 9B v2, vocabulary cut so that embeddings keep a like share.
SMALL = {
    "pattern": "M-M*-M-M-",
    "hidden_size": 240,
    "intermediate_size": 840,
    "vocab_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_head_dim": 60,
    "mamba_num_heads": 16,
    "mamba_head_dim": 32,
    "num_groups": 4,
    "state_size": 64,
}
LARGE = {
    "pattern": "M-M-MM-M-M*-M-M-M-M*-MM-M-M-",
    "hidden_size": 640,
    "intermediate_size": 2240,
    "vocab_size": 16384,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "attention_head_dim": 128,
    "mamba_num_heads": 24,
    "mamba_head_dim": 64,
    "num_groups": 8,
    "state_size": 128,
}
TOLERANCE = 1e-4
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}


class Sizes(NamedTuple):
    """What is run."""

    training: dict[str, Any]
    prefill: dict[str, Any]
    rows: int
    row_tokens: int
    prompt_tokens: int
    memory_tokens: tuple[int, ...]


FULL = Sizes(SMALL, LARGE, 4, 512, 4096, (2048, 4096, 8192))
_SHORT = SMALL | {"pattern": "M-*", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 256}
QUICK = Sizes(_SHORT, _SHORT, 2, 48, 96, (64, 128, 256))


def build(fields: dict[str, Any]) -> HybridLM:
    """Return a model whose every parameter is random: D = 1 and norms of 1 would hide mistakes."""
    model = init_weights(HybridLM(ModelSpec.parse(fields, "bench")), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.uniform_(0.0, 2.5, generator=generator)
            elif name.endswith("dt_bias"):
                weight.uniform_(-9.0, 0.0, generator=generator)
            elif name.endswith((".D", "norm.weight", "norm_f.weight")):
                weight.normal_(1.0, 0.2, generator=generator)
    return model


def foreign(model: HybridLM) -> Any:
    """Return transformers' model of the same weights."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        save(model, Path(directory) / "model")
        other = AutoModelForCausalLM.from_pretrained(f"{directory}/model", dtype=torch.float32)
    for layer in other.model.layers:
        if layer.block_type == "linear_attention":
            layer.mixer.time_step_limit = tuple(model.spec.time_step_limit)
    return other


def random_tokens(model: HybridLM, *shape: int) -> torch.Tensor:
    """Return tokens, the same ones every time."""
    return torch.randint(model.spec.vocab_size, shape, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def check_logits(ours: HybridLM, theirs: Any, num_tokens: int) -> None:
    """Stop unless float32 logits agree to 1e-4 of their spread."""
    tokens = random_tokens(ours, 1, num_tokens)
    want = theirs(tokens, use_cache=False).logits
    error = float((ours(tokens) - want).abs().max() / want.std())
    if not error < TOLERANCE:
        sys.exit(f"logits differ by {error:.1e} of their spread: nothing to time")


def training_steps(
    ours: HybridLM, theirs: Any, sizes: Sizes, dtype: torch.dtype
) -> tuple[Callable, Callable]:
    """Return one training step of each side on the same rows, both returning the mean loss."""
    set_precision(ours, "float32" if dtype == torch.float32 else "bfloat16")
    mixed = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    tokens = random_tokens(ours, sizes.rows, sizes.row_tokens)
    weights = torch.ones(tokens.shape)
    weights[:, -1] = 0.0
    ends = torch.arange(0, tokens.numel() + 1, sizes.row_tokens, dtype=torch.int32)
    packed = [x.reshape(1, -1) for x in (tokens, tokens.roll(-1, 1), weights)]
    batch = PackedBatch(packed[0], packed[1], packed[2], ends)
    optimizers = [adamw(model, AdamWSettings()) for model in (ours, theirs)]
    for optimizer in optimizers:
        set_learning_rate(optimizer, 1e-4)
    theirs.train()

    def our_step() -> float:
        optimizers[0].zero_grad()
        output = next_token_loss(ours, batch)
        mean = output.total / output.weight
        mean.backward()
        optimizers[0].step()
        return float(mean.detach())

    def their_step() -> float:
        optimizers[1].zero_grad()
        with mixed:
            mean = theirs(tokens, labels=tokens, use_cache=False).loss
        mean.backward()
        optimizers[1].step()
        return float(mean.detach())

    return our_step, their_step


def prefills(ours: HybridLM, theirs: Any, num_tokens: int) -> tuple[Callable, Callable]:
    """Return a prefill of each side that keeps the state and the last logits."""
    tokens = random_tokens(ours, 1, num_tokens)
    last = torch.tensor([num_tokens - 1])

    @torch.inference_mode()
    def our_prefill() -> None:
        state = HybridState.empty(ours.spec, 1, num_tokens, dtype=next(ours.parameters()).dtype)
        ours(tokens, state=state, logits_for=last)

    @torch.inference_mode()
    def their_prefill() -> None:
        theirs(tokens, use_cache=True, logits_to_keep=1)

    return our_prefill, their_prefill


def products(
    model: HybridLM, num_tokens: int, dtype: torch.dtype, *, training: bool
) -> Callable[[], None]:
    """Return the model's linear maps alone: forward, and if training the two of backward.

    A prefill needs the head for one token only, which is left out.
    """
    modules = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    weights = [m.weight.detach().to(dtype) for m in modules if training or m is not model.lm_head]
    widths = {width for weight in weights for width in weight.shape}
    rows = {width: torch.randn(num_tokens, width, dtype=dtype) for width in widths}

    @torch.inference_mode()
    def run() -> None:
        for weight in weights:
            x, dy = rows[weight.shape[1]], rows[weight.shape[0]]
            multiply(x, weight, None)
            if training:
                multiply(dy, weight.t(), None)
                weight_gradient(dy, x)

    return run


def time_in_turn(sides: tuple[Callable, ...], rounds: int, clock: str) -> list[list[float]]:
    """Time all sides in turn, in alternating order, after a round of warming up."""
    times: list[list[float]] = [[] for _ in sides]
    now = CLOCKS[clock]
    for number in range(rounds + 1):
        order = range(len(sides))
        for side in order if number % 2 else reversed(order):
            started = now()
            sides[side]()
            if number:
                times[side].append(now() - started)
    return times


def row(name: str, num_tokens: int, times: list[list[float]]) -> str:
    """Return a line of the table: rates, ratio, the spread of the ratio, and its ceiling."""
    ours, theirs, _ = (num_tokens / statistics.median(side) for side in times)
    ratios = sorted(b / a for a, b, _ in zip(*times, strict=True))
    ceiling = statistics.median(b / c for _, b, c in zip(*times, strict=True))
    return (
        f"| {name} | {ours:,.0f} | {theirs:,.0f} | {statistics.median(ratios):.2f} "
        f"| {ratios[0]:.2f} - {ratios[-1]:.2f} | {ceiling:.2f} |"
    )


def shares(name: str, step: Callable) -> str:
    """Return a line of the table: where our side's time goes."""
    call = native.call

    def named(kernel: str, *arguments: Any) -> None:
        with torch.profiler.record_function(f"native {kernel}"):
            call(kernel, *arguments)

    native.call = named
    for _ in range(2):  # starting to profile takes time that lands on the first one
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
    native.call = call
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    largest = sorted(times, key=lambda key: -times[key])[:10]
    listed = ", ".join(f"{key} {times[key] / total:.0%}" for key in largest)
    return f"| {name}: shares of our time | {listed} | | | | |"


def memory_of(sizes: Sizes, num_tokens: int) -> int:
    """Return by how many bytes the peak of this fresh process exceeds what it held before."""
    model = build(sizes.prefill)
    with torch.inference_mode():
        model(random_tokens(model, 1, 16))
        before = resident_bytes("VmRSS")
        model(random_tokens(model, 1, num_tokens), logits_for=torch.tensor([num_tokens - 1]))
    return resident_bytes("VmHWM") - before


def resident_bytes(key: str) -> int:
    """Return VmRSS (now) or VmHWM (peak) of this process, as Linux counts them.

    getrusage is no use here: its peak includes the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    sys.exit(f"/proc/self/status has no {key}")


def memory_rows(sizes: Sizes, arguments: list[str]) -> list[str]:
    """Measure each length in a process of its own, for a peak never falls."""
    lines = ["| tokens | peak growth (MiB) | KiB per token |", "|---|---|---|"]
    for num_tokens in sizes.memory_tokens:
        command = [sys.executable, __file__, *arguments, "--memory-of", str(num_tokens)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        grown = int(found.stdout)
        per_token = grown / 1024 / num_tokens
        lines.append(f"| {num_tokens:,} | {grown / 2**20:,.0f} | {per_token:,.1f} |")
    return lines


def facts(options: argparse.Namespace) -> list[str]:
    """Return what a reader needs to judge the numbers."""
    import transformers

    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return [
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start",
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, native kernels {native.library().status}",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {options.rounds} rounds: "
        f"`python {' '.join(sys.argv)}`",
    ]


def training_rows(sizes: Sizes, dtype: torch.dtype, rounds: int, clock: str) -> list[str]:
    """Check, then time training; return its lines of the table."""
    ours = build(sizes.training)
    theirs = foreign(ours)
    check_logits(ours, theirs, sizes.row_tokens)
    ours_step, their_step = training_steps(ours, theirs, sizes, dtype)
    losses = ours_step(), their_step()
    if abs(losses[0] - losses[1]) > LOSS_TOLERANCE[dtype] * losses[1]:
        sys.exit(f"first losses differ, {losses[0]} and {losses[1]}: nothing to time")
    millions = ours.spec.num_parameters / 1e6
    name = f"training, {millions:.1f}M, {sizes.rows} x {sizes.row_tokens}, {_name(dtype)}"
    num_tokens = sizes.rows * sizes.row_tokens
    alone = products(ours, num_tokens, dtype, training=True)
    times = time_in_turn((ours_step, their_step, alone), rounds, clock)
    return [row(name, num_tokens, times), shares("training", ours_step)]


def prefill_rows(sizes: Sizes, dtype: torch.dtype, rounds: int, clock: str) -> list[str]:
    """Check, then time prefill; return its lines of the table."""
    ours = build(sizes.prefill)
    theirs = foreign(ours).eval()
    check_logits(ours, theirs, 257)
    millions = ours.spec.num_parameters / 1e6
    name = f"prefill, {millions:.0f}M, {sizes.prompt_tokens:,}, {_name(dtype)}"
    pair = prefills(ours.to(dtype), theirs.to(dtype), sizes.prompt_tokens)
    alone = products(ours, sizes.prompt_tokens, dtype, training=False)
    times = time_in_turn((*pair, alone), rounds, clock)
    return [row(name, sizes.prompt_tokens, times), shares("prefill", pair[0])]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(sizes: Sizes, options: argparse.Namespace) -> list[str]:
    """Check and time everything; return the report's lines."""
    table = ["| what | plait tokens/s | transformers tokens/s | ratio | spread | ceiling |"]
    table.append("|---|---|---|---|---|---|")
    for timed in (training_rows, prefill_rows):
        table += timed(sizes, getattr(torch, options.dtype), options.rounds, options.clock)
    forwarded = ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    facts_lines = [f"- {fact}" for fact in facts(options)]
    return [*facts_lines, "", *table, "", *memory_rows(sizes, forwarded)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: where other work runs, 1 thread"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = QUICK if options.quick else FULL
    if options.memory_of is not None:
        print(memory_of(sizes, options.memory_of))
        return
    report = "\n".join(["# Training and prefill on a processor", "", *measure(sizes, options), ""])
    print(report)
    if options.out is not None:
        options.out.write_text(report)


if __name__ == "__main__":
    main()
