import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plait.train import checkpoint
from plait.train.conftest import Toy, ToyBatches, lines, settings, toy_loss, weights
from plait.train.interrupt import Interrupted
from plait.train.loop import DivergedError, train
from plait.train.metrics import Metrics


class Crash(BaseException):
    """A kill: nothing handles it."""


def run(out):
    torch.manual_seed(5)
    model = Toy()
    chosen = settings(num_steps=4, accumulation=1, keep_checkpoints=1)
    train(model, ToyBatches(), toy_loss, chosen, out)
    return weights(model), lines(out)


class Disk:
    """Counts what is done to the disk and dies before the n-th operation."""

    OPERATIONS = (
        (os, "fsync"),
        (Path, "rename"),
        (Path, "replace"),
        (shutil, "rmtree"),
        (checkpoint, "save_file"),
        (checkpoint, "write_json"),
        (Metrics, "_write"),
    )

    def __init__(self, monkeypatch):
        self.count, self.last = 0, None
        for owner, name in self.OPERATIONS:
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, operation):
        def wrapped(*arguments, **options):
            self.count += 1
            if self.count == self.last:
                raise Crash
            return operation(*arguments, **options)

        return wrapped

    def dies_at(self, number):
        self.count, self.last = 0, number


def test_a_kill_before_any_disk_operation_changes_nothing(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    want = run(tmp_path / "whole")
    num_operations = disk.count
    assert num_operations > 20
    for number in range(1, num_operations + 1):
        out = tmp_path / f"killed_{number}"
        disk.dies_at(number)
        with pytest.raises(Crash):
            run(out)
        disk.dies_at(None)
        assert run(out) == want, f"killed before operation {number}"
        assert not list(out.glob("checkpoints/.*")), "half-written folders stay"
        shutil.rmtree(out)


def test_what_kills_left_of_other_steps_is_removed_at_the_next_start(tmp_path):
    want = run(tmp_path)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step_00000004", folder / ".step_00000003.partial")
    # Killed between the two renames of a replacement: this is the only copy.
    (folder / "step_00000004").rename(folder / ".step_00000004.replaced")
    metrics = tmp_path / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    assert run(tmp_path) == want
    assert metrics.stat().st_mtime_ns == before  # no step was made again
    assert [path.name for path in folder.iterdir()] == ["step_00000004"]


def test_a_damaged_checkpoint_is_neither_named_nor_counted(tmp_path):
    def train_on(loss):
        torch.manual_seed(5)
        chosen = settings(10, checkpoint_every_steps=5, accumulation=1)
        return train(Toy(), ToyBatches(), loss, chosen, tmp_path)

    def diverging(model, tokens):
        output = toy_loss(model, tokens)
        return output._replace(total=output.total * math.nan)

    def stopping(model, tokens):
        os.kill(os.getpid(), signal.SIGTERM)
        return toy_loss(model, tokens)

    train_on(toy_loss)
    file = tmp_path / "checkpoints" / "step_00000010" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(DivergedError, match=r"last good checkpoint: .*step_00000005\."):
        train_on(diverging)
    with pytest.raises(Interrupted, match=r"go on from .*step_00000006"):
        train_on(stopping)
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_00000005", "step_00000006"]
    train_on(toy_loss)
    assert file.read_bytes() == whole


def test_a_checkpoint_holds_masters_moments_and_places(tmp_path):
    torch.manual_seed(5)
    model = Toy()
    train(model, ToyBatches(), toy_loss, settings(num_steps=4), tmp_path)
    folder = tmp_path / "checkpoints" / "step_00000004"
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    ]
    moments = load_file(folder / "optimizer.safetensors")
    assert moments.keys() == {
        f"{name}::{key}"
        for name in ("embedding", "norm", "head")
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert {float(moments[f"{name}::step"]) for name in ("embedding", "norm", "head")} == {4.0}
    masters = load_file(folder / "model.safetensors")
    assert {name: t.numpy().tobytes() for name, t in masters.items()} == weights(model)


def test_a_checkpoint_without_the_time_of_steps_is_used(tmp_path):
    """As earlier versions wrote them."""
    run(tmp_path)
    file = tmp_path / "checkpoints" / "step_00000004" / "state.json"
    state = json.loads(file.read_text())
    del state["position"]["steps_s"]
    file.write_text(json.dumps(state))
    torch.manual_seed(5)
    chosen = settings(num_steps=4, accumulation=1)
    result = train(Toy(), ToyBatches(), toy_loss, chosen, tmp_path)
    elapsed_s = state["position"]["elapsed_s"]
    assert result.summary()["tokens_per_s"] == pytest.approx(4 * 13 / elapsed_s)


def test_metrics_lines_after_the_checkpoint_and_half_lines_are_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics = Metrics(file, 0)
    metrics.write_evaluation(0, {"score": 9.0})
    for step in (1, 2, 3):
        metrics.write_step({"step": step, "loss": 1.0 / step})
    with file.open("a") as handle:
        handle.write('{"step": 4, "lo')
    again = Metrics(file, 2)
    assert file.read_text().splitlines() == [
        '{"step": 0, "eval.score": 9.0}',
        '{"step": 1, "loss": 1.0}',
        '{"step": 2, "loss": 0.5}',
    ]
    assert again.last == {"step": 2, "loss": 0.5}
    assert again.evaluations == {0: {"score": 9.0}}
