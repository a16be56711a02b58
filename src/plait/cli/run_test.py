"""The runner against stand-in stages: order, skipping, resuming, and errors before work starts."""

import json
import sys
import types
from pathlib import Path

import pytest

from plait.cli import run as module
from plait.cli.run import StageKind, check_recipe, run_recipe
from plait.core.config import Settings
from plait.core.errors import ConfigError, DataError
from plait.core.recipe import read_recipe
from plait.core.run_folder import exclusive, read_manifest


class WriteSettings(Settings):
    text: str = "hello"
    fail: bool = False
    file: str | None = None

    def files_read(self):
        return [Path(self.file)] if self.file else []


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Register one stage kind, `write`: it joins its inputs' files with its own text."""
    seen = []

    def run(settings, inputs, out):
        seen.append(out.name)
        if settings.fail:
            (out / "half").write_text("work")
            raise DataError("stop here")
        parts = [(folder / "text").read_text() for folder in inputs.values()]
        (out / "text").write_text("".join([*parts, settings.text]))
        return {"length": float(len(settings.text))}

    stage = types.ModuleType("stand_in_stage")
    stage.WriteSettings, stage.run = WriteSettings, run
    monkeypatch.setitem(sys.modules, "stand_in_stage", stage)
    monkeypatch.setattr(
        module, "STAGES", {"write": StageKind("stand_in_stage", "WriteSettings", (), ("x",))}
    )
    recipe = tmp_path / "demo"
    recipe.mkdir()
    (recipe / "01_one.toml").write_text('stage = "write"\ntext = "a"\n')
    (recipe / "02_two.toml").write_text('stage = "write"\ntext = "b"\n[inputs]\nx = "one"\n')
    return seen


def test_stages_run_once_and_then_are_skipped(calls, tmp_path):
    for _ in range(2):
        run_recipe(tmp_path / "demo", tmp_path / "runs", [], None)
    assert calls == ["01_one", "02_two"]
    assert (tmp_path / "runs/demo/02_two/text").read_text() == "ab"
    summary = json.loads((tmp_path / "runs/demo/summary.json").read_text())
    assert summary["two.length"] == 1.0
    assert summary["run.peak_memory_gib"] > 0.01
    assert (tmp_path / "runs/demo/report.html").exists()


def test_a_changed_setting_reruns_the_stage_and_what_reads_it(calls, tmp_path):
    run_recipe(tmp_path / "demo", tmp_path / "runs", [], None)
    run_recipe(tmp_path / "demo", tmp_path / "runs", ["one.text=c"], None)
    assert calls == ["01_one", "02_two"] * 2
    assert (tmp_path / "runs/demo/02_two/text").read_text() == "cb"
    assert len(list((tmp_path / "runs/demo/.old").iterdir())) == 2


def test_a_failed_stage_is_resumed_and_earlier_ones_are_kept(calls, tmp_path):
    with pytest.raises(DataError, match="stop here"):
        run_recipe(tmp_path / "demo", tmp_path / "runs", ["two.fail=true"], None)
    with pytest.raises(DataError):
        run_recipe(tmp_path / "demo", tmp_path / "runs", ["two.fail=true"], None)
    assert calls == ["01_one", "02_two", "02_two"]
    assert (tmp_path / "runs/demo/02_two/half").read_text() == "work"


def test_until_stops_after_a_stage(calls, tmp_path):
    run_recipe(tmp_path / "demo", tmp_path / "runs", [], "one")
    assert calls == ["01_one"]
    with pytest.raises(ConfigError, match=r"--until tow: no such stage; did you mean 'two'"):
        run_recipe(tmp_path / "demo", tmp_path / "runs", [], "tow")


def test_a_run_that_ends_early_still_tells_of_all_that_is_finished(calls, tmp_path):
    run_recipe(tmp_path / "demo", tmp_path / "runs", [], None)
    run_recipe(tmp_path / "demo", tmp_path / "runs", [], "one")
    assert calls == ["01_one", "02_two"]
    summary = json.loads((tmp_path / "runs/demo/summary.json").read_text())
    assert {"one.length", "two.length"} <= summary.keys()


def test_what_a_renumbered_stage_left_is_not_told_of(calls, tmp_path):
    run_recipe(tmp_path / "demo", tmp_path / "runs", [], None)
    (tmp_path / "demo" / "02_two.toml").rename(tmp_path / "demo" / "03_two.toml")
    run_recipe(tmp_path / "demo", tmp_path / "runs", [], None)
    page = (tmp_path / "runs/demo/report.html").read_text()
    assert "03_two" in page
    assert "02_two" not in page
    assert (tmp_path / "runs/demo/02_two/text").exists()


def test_a_mistake_in_the_last_stage_stops_before_the_first(calls, tmp_path):
    for override, message in [
        ("two.txt=1", r"02_two\.toml: unknown key 'txt'; did you mean 'text'"),
        ("two.fail=5", r"02_two\.toml: key 'fail'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run_recipe(tmp_path / "demo", tmp_path / "runs", [override], None)
    (tmp_path / "demo" / "03_three.toml").write_text('stage = "wirte"\n')
    with pytest.raises(ConfigError, match=r"03_three\.toml: no stage kind 'wirte'.*'write'"):
        run_recipe(tmp_path / "demo", tmp_path / "runs", [], None)
    assert calls == []


def test_headlines_show_what_changed_and_leave_details_to_the_report():
    summary = {
        "eval.accuracy.think": 1.0,
        "eval.accuracy.think.sum": 0.9,
        "eval.bits_per_byte.code": 3.0631,
        "eval.bits_per_byte_before.code": 4.7,
        "curate.documents_in": 9.0,
        "run.wall_s": 1234.0,
    }
    assert module.headlines(summary) == [
        "eval.accuracy.think      1",
        "eval.bits_per_byte.code  3.063  (before training 4.7)",
        "run.wall_s               1,234",
    ]


def test_an_edited_file_of_the_user_runs_the_stage_again(calls, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text("one")
    for _ in range(2):
        run_recipe(tmp_path / "demo", tmp_path / "runs", [f"one.file={mine}"], "one")
    assert calls == ["01_one"]
    mine.write_text("longer than before")
    run_recipe(tmp_path / "demo", tmp_path / "runs", [f"one.file={mine}"], "one")
    assert calls == ["01_one"] * 2


def test_inputs_are_checked_before_the_first_stage(calls, tmp_path, monkeypatch):
    kind = StageKind("stand_in_stage", "WriteSettings", ("model",), ("x",))
    monkeypatch.setitem(module.STAGES, "needy", kind)
    file = tmp_path / "demo" / "03_three.toml"
    for inputs, message in [
        ("", r"03_three\.toml: needy needs the input 'model'"),
        ('modle = "one"', r"needy takes no input 'modle'; did you mean 'model'"),
        ('model = ["one", "two"]', r"needy takes one 'model', not a list"),
        ('model = "./nowhere"', r"input 'model': \./nowhere does not exist"),
    ]:
        file.write_text(f'stage = "needy"\n[inputs]\n{inputs}\n')
        with pytest.raises(ConfigError, match=message):
            run_recipe(tmp_path / "demo", tmp_path / "runs", [], None)
    assert calls == []


def test_checked_stages_carry_resolved_settings(calls, tmp_path):
    one, two = check_recipe(read_recipe(tmp_path / "demo"))
    assert (one.settings.text, two.settings.text, one.settings.fail) == ("a", "b", False)


def test_the_peak_of_memory_is_each_stages_own(calls, tmp_path, monkeypatch):
    def run(settings, inputs, out):
        (out / "text").write_text(settings.text)
        len(b"x" * (300 * 2**20 if out.name == "01_one" else 1))
        return {}

    monkeypatch.setattr(sys.modules["stand_in_stage"], "run", run)
    run_recipe(tmp_path / "demo", tmp_path / "runs", [], None)
    runs = tmp_path / "runs/demo"
    one, two = (read_manifest(runs / name) for name in ("01_one", "02_two"))
    summary = json.loads((runs / "summary.json").read_text())
    assert summary["run.peak_memory_gib"] == one["peak_memory_gib"]
    assert one["peak_memory_of"] == two["peak_memory_of"]
    if one["peak_memory_of"] == "stage":
        assert one["peak_memory_gib"] > two["peak_memory_gib"] + 0.25


def test_a_stage_has_its_folder_alone(calls, tmp_path):
    run_recipe(tmp_path / "demo", tmp_path / "runs", [], "one")
    with (
        exclusive(tmp_path / "runs" / "demo" / "01_one"),
        pytest.raises(ConfigError, match="01_one: another plait run works here"),
    ):
        run_recipe(tmp_path / "demo", tmp_path / "runs", ["one.text=c"], None)
    assert calls == ["01_one"]


def test_several_processes_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"several processes were started.* without torchrun"):
        run_recipe(tmp_path, tmp_path, [], None)
    assert not list(tmp_path.iterdir())
