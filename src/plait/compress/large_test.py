"""A parent of three billion parameters on a machine that could not train it: scored, cut, written.

Minutes and 11 GB of disk: `make test-slow`.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from plait.compress.cut import CUT_FILE, Cut
from plait.core.artifact import atomic_directory, write_json
from plait.core.sizes import GIB
from plait.model.hf import write_files
from plait.model.hf_stream import ModelDirectory
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

# Nano 9B v2 at four sevenths of its width, half its Mamba and attention heads.
PARENT = ModelSpec.preset(
    "nano-9b-v2",
    hidden_size=2560,
    intermediate_size=8960,
    num_attention_heads=20,
    num_key_value_heads=4,
    mamba_num_heads=64,
)

# Runs in processes of its own, so that their peaks can be read (not ru_maxrss: a process inherits
# its parent's) and they can be killed.
SCORE = """
import sys, torch
from pathlib import Path
from plait.compress.importance import ScoreSettings, score
torch.set_num_threads(1)
tokens = torch.randint(131072, (2, 64), generator=torch.Generator().manual_seed(1))
# Only attention layers may go, so that few candidates have to be tried.
settings = ScoreSettings(num_removals=1, depth_rows=1, keep={"M": 27, "-": 25})
scores = score(Path(sys.argv[1]), tokens, Path(sys.argv[2]), settings)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
PRUNE = """
import sys, torch
from pathlib import Path
from plait.compress.cut import Shape
from plait.compress.prune import prune_directory
from plait.compress.scores import Scores
torch.set_num_threads(1)
scores = Scores.read(Path(sys.argv[2]))
shape = Shape(
    layers=scores.layers(55), hidden_size=2240, intermediate_size=7840,
    mamba_num_heads=56, mamba_head_dim=64,
)
cut = scores.cut(shape, scores.spec)
prune_directory(Path(sys.argv[1]), cut, Path(sys.argv[3]), scores.corrections(cut))
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def write_parent(directory):
    """Random weights of a sensible size; no two rows are equal."""
    noise = torch.randn(2**24 - 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    shapes = {
        name: weight.shape for name, weight in HybridLM(PARENT, device="meta").state_dict().items()
    }

    def read(name):
        shape = shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        repeats = -(-shape.numel() // len(noise))
        scale = 1.0 if "embeddings" in name else shape[-1] ** -0.5
        return (noise * scale).repeat(repeats)[: shape.numel()].view(shape).clone()

    with atomic_directory(directory) as partial:
        num_bytes = {name: 2 * shape.numel() for name, shape in shapes.items()}
        write_files(partial, PARENT, num_bytes, read, torch.bfloat16, max_shard_bytes=10**9)


def start(code, *paths):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", code, *map(str, paths)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)


def finish(process):
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0
    return int(output) * 1024


@pytest.mark.slow
def test_a_large_parent_is_scored_killed_resumed_and_cut(tmp_path):
    parent, scores, child = (tmp_path / name for name in ("parent", "scores", "child"))
    assert PARENT.num_parameters > 2.9e9
    write_parent(parent)
    # what is allowed: two layers' weights and 2 GiB
    limit = 2 * 2 * max(map(PARENT.layer_parameters, "M*-")) + 2 * GIB
    try:
        began = time.monotonic()
        killed = start(SCORE, parent, scores)
        while not (scores / "layers" / "019.safetensors").exists():
            assert killed.poll() is None
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        first = {
            file.name: file.stat().st_mtime_ns for file in (scores / "layers").glob("*.safetensors")
        }
        assert 20 <= len(first) < 57
        peak_scoring = finish(start(SCORE, parent, scores))
        scoring_s = time.monotonic() - began
        after = {
            file.name: file.stat().st_mtime_ns for file in (scores / "layers").glob("*.safetensors")
        }
        assert len(after) == 57
        assert {name: after[name] for name in first} == first
        began = time.monotonic()
        peak_pruning = finish(start(PRUNE, parent, scores, child))
        pruning_s = time.monotonic() - began
    finally:
        for file in (parent / "model.safetensors", *parent.glob("model-*.safetensors")):
            file.unlink(missing_ok=True)
    written = ModelDirectory(child)
    cut = Cut.read(child / CUT_FILE)
    assert written.spec == cut.spec(PARENT)
    assert written.spec.num_attention_layers == 3
    facts = {
        "parameters": PARENT.num_parameters,
        "child_parameters": written.spec.num_parameters,
        "limit_gib": limit / GIB,
        "peak_scoring_gib": peak_scoring / GIB,
        "peak_pruning_gib": peak_pruning / GIB,
        "scoring_s": scoring_s,
        "pruning_s": pruning_s,
    }
    for file in child.glob("model-*.safetensors"):
        file.unlink()
    write_json(tmp_path / "facts.json", facts)
    assert peak_scoring <= limit
    assert peak_pruning <= limit
