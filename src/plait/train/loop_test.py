import logging
import os
import signal
import threading
import time

import pytest
import torch

from plait.core.errors import CheckpointError, ConfigError, DataError
from plait.train import loop, parallel
from plait.train.conftest import Toy, ToyBatches, lines, settings, toy_loss, weights
from plait.train.interrupt import Interrupted
from plait.train.loop import DivergedError, LossOutput, train


class Crash(BaseException):
    """A kill: nothing handles it."""


def crashing_at(micro_batch, action=None):
    """A loss that dies (or acts) at its n-th call."""
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if calls == micro_batch:
            if action is None:
                raise Crash
            action()
        return toy_loss(model, batch)

    return loss


def evaluate(model, step):
    # Draws random numbers on purpose: they must not reach training.
    return {"score": float(torch.rand(()) * 0 + model.head.detach().abs().sum())}


def run(out, loss=toy_loss, evaluate=evaluate, **changes):
    torch.manual_seed(5)
    model = Toy()
    chosen = settings(**{"evaluate_every_steps": 3} | changes)
    result = train(model, ToyBatches(), loss, chosen, out, evaluate=evaluate)
    return model, result


@pytest.fixture
def uninterrupted(tmp_path):
    model, _ = run(tmp_path / "uninterrupted")
    return weights(model), lines(tmp_path / "uninterrupted")


def test_a_run_learns_and_records_every_step(tmp_path):
    _, result = run(tmp_path, num_steps=30, checkpoint_every_steps=10)
    steps = [line for line in lines(tmp_path, timed=True) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert steps[-1]["loss"] < 0.75 * steps[0]["loss"]
    assert steps[-1]["tokens"] == result.position.tokens == 30 * 2 * 13
    assert result.last == steps[-1]
    assert list(result.evaluations) == [0, *range(3, 31, 3)]
    want = "step tokens loss accuracy learning_rate grad_norm tokens_per_s elapsed_s"
    assert list(steps[0]) == want.split()
    assert steps[0]["learning_rate"] == pytest.approx(0.05 / 3)
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_00000020", "step_00000030"]


# Two micro-batches a step, checkpoints after steps 2, 4, 6: kills in every kind of place.
@pytest.mark.parametrize("micro_batch", [1, 2, 4, 5, 6, 8, 9, 12])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, micro_batch):
    with pytest.raises(Crash):
        run(tmp_path / "out", crashing_at(micro_batch))
    model, _ = run(tmp_path / "out")
    assert (weights(model), lines(tmp_path / "out")) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_finishes_the_step_and_checkpoints(tmp_path, uninterrupted, number, caplog):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt():
        os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"after step 3; run again .*step_00000003"):
        run(tmp_path / "out", crashing_at(5, interrupt))
    assert number.name in caplog.text
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert [line["step"] for line in lines(tmp_path / "out") if "loss" in line] == [1, 2, 3]
    model, _ = run(tmp_path / "out")
    assert (weights(model), lines(tmp_path / "out")) == uninterrupted


@pytest.mark.parametrize(
    ("step", "place"), [(0, "the start"), (3, ".*step_00000003"), (6, ".*step_00000006")]
)
def test_a_signal_during_an_evaluation_stops_after_it(tmp_path, uninterrupted, step, place):
    def interrupted(model, now):
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(model, now)

    with pytest.raises(Interrupted, match=f"after step {step}; run again to go on from {place}$"):
        run(tmp_path / "out", evaluate=interrupted)
    assert lines(tmp_path / "out")[-1].keys() == {"step", "eval.score"}
    model, _ = run(tmp_path / "out")
    assert (weights(model), lines(tmp_path / "out")) == uninterrupted


def test_a_signal_during_the_last_checkpoint_is_not_forgotten(tmp_path, monkeypatch):
    def interrupt(directory, position, *others):
        save_checkpoint(directory, position, *others)
        if position.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    save_checkpoint = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", interrupt)
    with pytest.raises(Interrupted, match="after step 6"):
        train(Toy(), ToyBatches(), toy_loss, settings(), tmp_path)


def test_second_ctrl_c_stops_at_once(tmp_path):
    def interrupt_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stop:
        run(tmp_path, crashing_at(3, interrupt_twice))
    assert not isinstance(stop.value, Interrupted)
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [1]


def test_ignored_signals_stay_ignored(tmp_path):
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, result = run(tmp_path, crashing_at(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)
    assert result.position.step == 6


def test_trains_outside_the_main_thread(tmp_path, uninterrupted):
    models = []
    thread = threading.Thread(target=lambda: models.append(run(tmp_path / "out")[0]))
    thread.start()
    thread.join()
    assert weights(models[0]) == uninterrupted[0]


def test_a_finished_run_is_returned_as_it_was(tmp_path, uninterrupted):
    first, second = run(tmp_path / "out"), run(tmp_path / "out", crashing_at(1))
    assert weights(first[0]) == weights(second[0]) == uninterrupted[0]
    assert first[1] == second[1]


def test_the_speed_of_a_run_is_that_of_its_steps(tmp_path):
    def slow(model, step):
        time.sleep(0.05)
        return evaluate(model, step)

    with pytest.raises(Crash):
        run(tmp_path, crashing_at(11), evaluate=slow)
    _, result = run(tmp_path, evaluate=slow)
    steps = [line for line in lines(tmp_path, timed=True) if "loss" in line]
    steps_s = sum(2 * 13 / line["tokens_per_s"] for line in steps)
    assert result.position.steps_s == pytest.approx(steps_s)
    assert result.position.elapsed_s > steps_s + 2 * 0.05
    assert result.summary()["tokens_per_s"] == pytest.approx(6 * 2 * 13 / steps_s)


def test_a_kill_between_checkpoint_and_evaluation_makes_the_evaluation_up(tmp_path, uninterrupted):
    def dying(model, step):
        if step == 6:
            raise Crash
        return evaluate(model, step)

    torch.manual_seed(5)
    chosen = settings(evaluate_every_steps=3)
    with pytest.raises(Crash):
        train(Toy(), ToyBatches(), toy_loss, chosen, tmp_path / "out", evaluate=dying)
    _, result = run(tmp_path / "out", crashing_at(1))
    assert lines(tmp_path / "out") == uninterrupted[1]
    assert list(result.evaluations) == [0, 3, 6]


def test_every_token_counts_the_same_in_any_micro_batch(tmp_path):
    """One micro-batch of all tokens = several of unequal weight."""
    tokens = next(ToyBatches(40))

    class Fixed(ToyBatches):
        def __init__(self, pieces):
            self.number, self.pieces = 0, pieces

        def __next__(self):
            self.number += 1
            return self.pieces[(self.number - 1) % len(self.pieces)]

    def pairs_loss(model, pairs):
        weight = pairs[0].float() % 3 + 0.5
        losses = torch.nn.functional.cross_entropy(model(pairs[0]), pairs[1], reduction="none")
        return LossOutput((losses * weight).sum(), weight.sum())

    pairs = torch.stack([tokens[:-1], tokens[1:]])
    results = []
    for name, pieces in (("one", [pairs]), ("four", list(pairs.split([1, 20, 3, 15], 1)))):
        model = Toy(dropout=0.0)
        chosen = settings(accumulation=len(pieces), clip_norm=0.3)
        train(model, Fixed(pieces), pairs_loss, chosen, tmp_path / name)
        results.append((model.state_dict(), lines(tmp_path / name)))
    for name, tensor in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], tensor, rtol=1e-5, atol=1e-6)
    for one, four in zip(results[0][1], results[1][1], strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(four["grad_norm"], rel=1e-4)


def test_gradients_are_clipped_by_their_global_norm(tmp_path, monkeypatch):
    norms = []

    def spy(optimizer, rate):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())

    monkeypatch.setattr(loop, "set_learning_rate", spy)
    run(tmp_path / "clipped", num_steps=6, clip_norm=0.01)
    assert norms == pytest.approx([0.01] * 6)
    norms.clear()
    run(tmp_path / "free", num_steps=6, clip_norm=float("inf"))
    recorded = [line["grad_norm"] for line in lines(tmp_path / "free") if "loss" in line]
    assert norms == pytest.approx(recorded)
    assert min(norms) > 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path, value):
    def loss(model, tokens):
        output = toy_loss(model, tokens)
        bad = torch.equal(tokens, bad_batch)
        return output._replace(total=output.total * value) if bad else output

    source = ToyBatches()
    source.number = 7
    bad_batch = next(source)
    # Number 7 is the second micro-batch of step 4; the last checkpoint is that of step 2.
    message = (
        rf"step 4: the loss of micro-batch 2 of 2 is {value}; it was drawn at "
        r'\{"number": 7\} \(pattern 7\).*not updated.*checkpoint: .*step_00000002\. Look at'
    )
    with pytest.raises(DivergedError, match=message):
        run(tmp_path / "out", loss)
    run(tmp_path / "out")
    assert lines(tmp_path / "out")[-1]["step"] == 6


def test_a_gradient_that_is_not_finite_stops_and_names_the_tensor(tmp_path):
    def loss(model, tokens):
        # sqrt has an infinite slope at 0: finite loss, infinite gradient.
        return toy_loss(model, tokens)._replace(total=(model.norm - 1.0).abs().sum().sqrt())

    with pytest.raises(DivergedError, match=r"norm is nan, first in norm; .*none yet"):
        run(tmp_path, loss)


def test_bad_data_and_settings_are_named(tmp_path, monkeypatch):
    class Short(ToyBatches):
        def __next__(self):
            if self.number == 3:
                raise StopIteration
            return super().__next__()

    with pytest.raises(DataError, match="the data ended before the run"):
        train(Toy(), Short(), toy_loss, settings(), tmp_path / "short")

    def weightless(model, tokens):
        return toy_loss(model, tokens)._replace(weight=0.0)

    with pytest.raises(DataError, match=r"no token carries loss weight .*number.*0.*pattern 0"):
        train(Toy(), ToyBatches(), weightless, settings(), tmp_path / "weightless")
    monkeypatch.setattr(parallel, "num_processes", lambda: 4)
    with pytest.raises(ConfigError, match=r"accumulation = 2 .* 4 processes"):
        train(Toy(), ToyBatches(), toy_loss, settings(), tmp_path / "processes")


def test_a_damaged_checkpoint_is_passed_over(tmp_path, uninterrupted, caplog):
    with pytest.raises(Crash):
        run(tmp_path / "out", crashing_at(11))
    checkpoints = tmp_path / "out" / "checkpoints"
    file = checkpoints / "step_00000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        model, _ = run(tmp_path / "out")
    assert "step_00000004 is damaged (optimizer.safetensors does not have" in caplog.text
    assert (weights(model), lines(tmp_path / "out")) == uninterrupted
    for folder in checkpoints.iterdir():
        (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints are damaged; .*delete this"):
        run(tmp_path / "out")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path)
    model = Toy()
    model.head = torch.nn.Parameter(torch.zeros(11, 8))
    with pytest.raises(CheckpointError, match=r"model.safetensors: head is \(11, 7\) in the che"):
        train(model, ToyBatches(), toy_loss, settings(), tmp_path)
