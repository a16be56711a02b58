"""Real processes, really killed."""

import json
import random
import subprocess
import sys

# One process that imports torch once and forks the runs, which are then killed from outside.
DRIVER = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from plait.train.conftest import Toy, ToyBatches, lines, settings, toy_loss, weights
from plait.train.loop import Interrupted, train

torch.set_num_threads(1)
root, moments = Path(sys.argv[1]), json.loads(sys.argv[2])

def work(out):
    torch.manual_seed(5)
    model = Toy()
    try:
        train(model, ToyBatches(), toy_loss, settings(40, checkpoint_every_steps=7), out)
    except Interrupted:
        return 130
    (out / "weights").write_bytes(b"".join(weights(model).values()))
    return 0

def fork(out):
    child = os.fork()
    if child == 0:
        os._exit(work(out))
    return child

def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def product(out):
    return [(out / "weights").read_bytes().hex(), lines(out)]

work(root / "warm_up")  # loads what torch loads at first use
began = time.monotonic()
assert finish(fork(root / "whole")) == 0
whole_s = time.monotonic() - began

exits = []
for moment in moments:
    child = fork(root / "killed")
    time.sleep(moment * whole_s)
    os.kill(child, signal.SIGKILL)
    exits.append(finish(child))
assert finish(fork(root / "killed")) == 0

child = fork(root / "stopped")
metrics = root / "stopped" / "metrics.jsonl"
while not metrics.exists() or metrics.stat().st_size < 1000:
    time.sleep(0.001)
os.kill(child, signal.SIGTERM)
stopped = finish(child)
assert finish(fork(root / "stopped")) == 0

whole = product(root / "whole")
print(json.dumps({
    "kills": exits,
    "killed_is_whole": product(root / "killed") == whole,
    "stopped": stopped,
    "stopped_is_whole": product(root / "stopped") == whole,
}))
"""


def test_killed_and_stopped_processes_end_in_the_same_weights(tmp_path):
    moments = [random.Random(number).uniform(0.05, 0.5) for number in range(4)]
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), json.dumps(moments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert -9 in report["kills"]
    assert report["killed_is_whole"]
    assert report["stopped"] == 130
    assert report["stopped_is_whole"]
