import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from plait.train.conftest import lines

# One process that imports torch once and forks the ranks, with the environment torchrun gives them.
DRIVER = """
import os, shutil, socket, sys
from pathlib import Path
import torch
import torch.distributed.fsdp
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train import parallel
from plait.train.conftest import settings
from plait.train.loop import train
from plait.train.losses import next_token_loss
from plait.train.losses_test import Pattern, Uneven
from safetensors.torch import save_file

torch.set_num_threads(1)
root = Path(sys.argv[1])

def evaluate(model, step):
    with torch.no_grad():
        return {"total": float(next_token_loss(model, next(Pattern())).total)}

def work(out):
    with parallel.process_group():
        model = init_weights(HybridLM(ModelSpec.preset("test")), 3)
        parallel.shard(model, model.backbone.layers)
        plan = settings(
            6, accumulation=4, clip_norm=0.5, evaluate_every_steps=3, keep_checkpoints=3
        )
        train(model, Uneven(), next_token_loss, plan, out, evaluate=evaluate)
        masters = parallel.gathered(model.state_dict())
        if parallel.is_main():
            save_file(masters, out / "masters.safetensors")

def fork(out, rank=0, world=1):
    child = os.fork()
    if child == 0:
        if world > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
            os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost"}
            os.environ["MASTER_PORT"] = str(port)
        status = 1
        try:
            work(out)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child

def finish(*children):
    for child in children:
        assert os.waitpid(child, 0)[1] == 0

with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
one = fork(root / "one")
finish(fork(root / "two", 0, 2), fork(root / "two", 1, 2), one)
# Two processes began it, one goes on.
shutil.copytree(root / "two", root / "fewer")
for step in (4, 6):
    shutil.rmtree(root / "fewer" / "checkpoints" / f"step_{step:08d}")
finish(fork(root / "fewer"))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, str(root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "fewer"])
def test_two_sharded_processes_train_like_one(runs, name):
    want = load_file(runs / "one" / "masters.safetensors")
    found = load_file(runs / name / "masters.safetensors")
    for tensor in want:
        torch.testing.assert_close(found[tensor], want[tensor], rtol=1e-3, atol=1e-5)
    for line, reference in zip(lines(runs / name), lines(runs / "one"), strict=True):
        assert line == pytest.approx(reference, rel=1e-4)
