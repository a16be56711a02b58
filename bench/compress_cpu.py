"""Scoring a parent on a processor: what it costs beside the forward passes it must do.

A parent of about 1B parameters (proportions of Nemotron Nano 9B v2, random bfloat16 weights) is
written to disk and every axis is scored, layers too. The passes that this must do are counted:
every layer over all rows for the widths; for each candidate of the search for layers the layers
behind it, and the shared stream in front of the last of them; the output head for every candidate
and once for the parent. What a pass costs is measured in the same process, before and after: each
layer, and the head, on the same rows from memory, with nothing read and nothing looked at.

    time     seconds of scoring / seconds of the passes      target <= 1.3
    memory   peak resident bytes of the scoring process      target <= two layers' weights + 2 GiB

    .venv/bin/python bench/compress_cpu.py [--rows 4] [--row-tokens 256] [--threads N]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from plait.compress.importance import ScoreSettings, score
from plait.compress.scores import Scores
from plait.compress.stream import compute_dtype, run_layer
from plait.core.sizes import GIB
from plait.kernels.linear import linear
from plait.model.hf import save
from plait.model.hf_stream import ModelDirectory
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

PARENT = ModelSpec.preset(
    "nano-9b-v2",
    pattern="M-M-MM-M-M*-M-M-M-M*-MM-M-M-",
    hidden_size=2048,
    intermediate_size=8192,
    vocab_size=32768,
    num_attention_heads=16,
    num_key_value_heads=4,
    mamba_num_heads=64,
    mamba_head_dim=64,
)
TARGET = 1.3
MEMORY_TARGET = 2 * 2 * max(map(PARENT.layer_parameters, "M*-")) + 2 * GIB
DEPTH_ROWS = 1


def main() -> None:
    """Write the parent, score it in a process of its own, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parent", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parent:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder) / "parent"
        save(init_weights(HybridLM(PARENT, dtype=torch.bfloat16), seed=0), parent)
        subprocess.run([sys.executable, *sys.argv, "--parent", str(parent)], check=True)


def measure(options: argparse.Namespace) -> None:
    """Score the parent between two measurements of its passes."""
    torch.set_num_threads(options.threads)
    parent = ModelDirectory(options.parent)
    shape = (options.rows, options.row_tokens)
    tokens = torch.randint(PARENT.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    before = time_passes(parent, shape)
    began = time.monotonic()
    settings = ScoreSettings(num_removals=1, depth_rows=DEPTH_ROWS)
    scores = score(parent.path, tokens, parent.path.with_name("scores"), settings)
    scoring_s = time.monotonic() - began
    peak = peak_bytes()
    costs = [(a + b) / 2 for a, b in zip(before, time_passes(parent, shape), strict=True)]
    widths_s, depth_s = passes_s(costs, scores, options.rows)
    ratio = scoring_s / (widths_s + depth_s)
    facts = {
        "parameters": PARENT.num_parameters,
        "rows": shape,
        "threads": options.threads,
        **scores.facts,
        "passes_s": {"widths": round(widths_s, 2), "depth": round(depth_s, 2)},
        "scoring_s": round(scoring_s, 2),
        "time_ratio": round(ratio, 3),
        "time_target": TARGET,
        "peak_gib": round(peak / GIB, 3),
        "peak_target_gib": round(MEMORY_TARGET / GIB, 3),
        "met": ratio <= TARGET and peak <= MEMORY_TARGET,
    }
    print(json.dumps(facts, indent=1))


def peak_bytes() -> int:
    """Return the most bytes that were resident; ru_maxrss would include the parent process's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def time_passes(parent: ModelDirectory, shape: tuple[int, int]) -> list[float]:
    """Return seconds of all rows through each layer, then through the head."""
    dtype = compute_dtype(parent, "cpu")
    x = torch.randn(*shape, PARENT.hidden_size, dtype=dtype)
    seconds = []
    for index in range(PARENT.num_layers):
        layer = parent.layer(index, dtype)
        run_layer(layer, x[:1].clone(), 4096)
        began = time.monotonic()
        run_layer(layer, x.clone(), 4096)
        seconds.append(time.monotonic() - began)
    head = parent.tensor("lm_head.weight", dtype)
    linear(x[:1], head)
    began = time.monotonic()
    linear(x, head)
    return [*seconds, time.monotonic() - began]


def passes_s(costs: list[float], scores: Scores, num_rows: int) -> tuple[float, float]:
    """Return seconds of the passes for widths and for the search for layers."""
    *layers, head = costs
    share = DEPTH_ROWS / num_rows
    [removal] = scores.removals
    behind = sum(sum(layers[candidate + 1 :]) for candidate in removal.harms)
    shared = sum(layers[: max(removal.harms)])
    return sum(layers), share * (behind + shared + head * (1 + len(removal.harms)))


if __name__ == "__main__":
    main()
