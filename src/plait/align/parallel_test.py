"""Preferences are learnt on two processes as on one; what samples refuses several."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

DRIVER = """
import json, os, socket, sys
from pathlib import Path
import torch
import torch.distributed.fsdp
from plait.align import dpo_stage, grpo_stage, pairs_stage, reward_stage, sft_stage
from plait.core.errors import ConfigError
from plait.train import parallel

torch.set_num_threads(1)

model, root = Path(sys.argv[1]), Path(sys.argv[2])
common = {"num_threads": 1, "learning_rate": 1e-3, "accumulation": 2, "tokens_per_batch": 200}
prompts = {"files": [str(root / "prompts.jsonl")]}
DPO = dpo_stage.DpoSettings.parse({"files": [str(root / "pairs.jsonl")], **common}, "dpo")
REFUSED = [
    (grpo_stage, grpo_stage.GrpoSettings.parse(prompts, "grpo")),
    (pairs_stage, pairs_stage.PairsSettings.parse(prompts, "pairs")),
    (reward_stage, reward_stage.RewardSettings.parse({}, "reward")),
    (dpo_stage, dpo_stage.DpoSettings.parse({"rounds": prompts}, "dpo")),
    (sft_stage, sft_stage.SftSettings.parse({"lora": {"rank": 2}}, "sft")),
]

def work(out, world):
    with parallel.process_group():  # once: a port is not free again at once
        dpo_stage.run(DPO, {"model": model}, out)
        for stage, settings in REFUSED if world > 1 else ():
            try:
                stage.run(settings, {"model": model}, out / "refused")
                raise AssertionError(stage)
            except ConfigError as error:
                assert "on one process; start it without torchrun" in str(error), error

def fork(out, rank=0, world=1):
    child = os.fork()
    if child == 0:
        if world > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
            os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost"}
            os.environ["MASTER_PORT"] = str(port)
        status = 1
        try:
            work(out, world)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child

with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
for child in (fork(root / "two", 0, 2), fork(root / "two", 1, 2), fork(root / "one")):
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
def test_dpo_learns_on_two_processes_as_on_one_and_sampling_refuses(base_model, tmp_path):
    pairs = [{"prompt": f"Add {n}.", "chosen": "3", "rejected": "A1"} for n in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    command = [sys.executable, "-c", DRIVER, str(base_model), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / n / "model/model.safetensors") for n in ("one", "two"))
    before = load_file(base_model / "model.safetensors")
    assert any((one[name] != before[name]).any() for name in one)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5)
