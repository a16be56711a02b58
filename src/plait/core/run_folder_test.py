import json
import os
import subprocess
import sys

import pytest

from plait.core.errors import ConfigError, DataError
from plait.core.run_folder import (
    check_free,
    exclusive,
    finish_run_folder,
    input_digest,
    model_directory,
    open_run_folder,
    read_manifest,
)


def make(path, settings=None, inputs=None, text="made"):
    folder = open_run_folder(path, "demo", settings or {"a": 1}, inputs or {})
    if folder.state != "finished":
        (path / "product.txt").write_text(text)
        finish_run_folder(folder, {"metrics": {}})
    return folder


def test_a_folder_is_fresh_then_finished_and_skipped(tmp_path):
    assert make(tmp_path / "01").state == "fresh"
    assert make(tmp_path / "01").state == "finished"


def test_without_a_manifest_it_is_resumed_in_place(tmp_path):
    first = open_run_folder(tmp_path / "01", "demo", {"a": 1}, {})
    (first.path / "half").write_text("work")
    again = open_run_folder(tmp_path / "01", "demo", {"a": 1}, {})
    assert again.state == "unfinished"
    assert (again.path / "half").read_text() == "work"


@pytest.mark.parametrize("name", ["settings.json", "manifest.json"])
def test_half_written_bookkeeping_never_counts_as_finished(tmp_path, name):
    make(tmp_path / "01")
    whole = (tmp_path / "01" / name).read_text()
    (tmp_path / "01" / name).write_text(whole[: len(whole) // 2])
    assert open_run_folder(tmp_path / "01", "demo", {"a": 1}, {}).state != "finished"


def test_other_settings_set_the_old_folder_aside(tmp_path):
    make(tmp_path / "01", text="first")
    changed = make(tmp_path / "01", {"a": 2})
    assert changed.state == "fresh"
    assert changed.set_aside is not None
    assert (changed.set_aside / "product.txt").read_text() == "first"
    assert make(tmp_path / "01", {"a": 1}).set_aside != changed.set_aside


def test_a_stage_does_not_write_where_it_reads(tmp_path):
    make(tmp_path / "01")
    product = tmp_path / "01" / "product.txt"
    for inputs, files in [
        ({"d": tmp_path / "01"}, []),
        ({"d": tmp_path / "02" / ".." / "01" / "product.txt"}, []),
        ({}, [product]),
    ]:
        with pytest.raises(ConfigError, match="is read by the stage that writes the folder"):
            open_run_folder(tmp_path / "01", "demo", {"a": 2}, inputs, files)
    assert product.exists()
    assert make(tmp_path / "011", inputs={"d": tmp_path / "01"}).state == "fresh"


@pytest.mark.parametrize("content", ['{"editor.tabSize": 4}', "[]", "{"])
def test_a_users_folder_with_a_settings_file_is_no_stage(tmp_path, content):
    mine = tmp_path / "project"
    mine.mkdir()
    (mine / "settings.json").write_text(content)
    with pytest.raises(ConfigError, match="holds something else"):
        check_free(mine)
    (mine / "manifest.json").write_text('{"name": "extension"}')
    before = input_digest(mine)
    (mine / "thesis.txt").write_text("x")
    assert input_digest(mine) != before
    with pytest.raises(ConfigError, match="holds something else"):
        check_free(mine)
    make(tmp_path / "01")
    check_free(tmp_path / "01")
    open_run_folder(tmp_path / "02", "demo", {}, {})
    check_free(tmp_path / "02")
    with pytest.raises(DataError, match="02: not finished"):
        input_digest(tmp_path / "02")


def test_downloads_outlive_a_change_of_settings(tmp_path):
    make(tmp_path / "01")
    (tmp_path / "01" / "cache").mkdir()
    (tmp_path / "01" / "cache" / "package").write_text("bytes")
    changed = open_run_folder(tmp_path / "01", "demo", {"a": 2}, {})
    assert changed.state == "fresh"
    assert (changed.path / "cache" / "package").read_text() == "bytes"
    assert not (changed.path / "product.txt").exists()


def test_a_changed_input_changes_the_fingerprint(tmp_path):
    one, two = tmp_path / "in", tmp_path / "02"
    make(one, text="x")
    assert make(two, inputs={"d": one}).state == "fresh"
    assert make(two, inputs={"d": one}).state == "finished"
    make(one, {"a": 9}, text="y")
    assert make(two, inputs={"d": one}).state == "fresh"


def test_the_digest_ignores_timings_and_scratch(tmp_path):
    digests = []
    for name in ("a", "b"):
        folder = open_run_folder(tmp_path / name, "demo", {}, {})
        (folder.path / "product.txt").write_text("same")
        (folder.path / "metrics.jsonl").write_text(name)
        (folder.path / "logs").mkdir()
        (folder.path / "logs" / "log").write_text(name)
        finish_run_folder(folder, {"metrics": {}, "wall_s": len(digests)})
        digests.append(read_manifest(folder.path)["digest"])
    assert digests[0] == digests[1]


def test_inputs_from_elsewhere_are_hashed_by_content(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("1")
    before = input_digest(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("2")
    assert input_digest(tmp_path / "model") != before
    with pytest.raises(ConfigError, match="does not exist"):
        input_digest(tmp_path / "none")


@pytest.mark.parametrize("name", ["cache", "logs", "checkpoints", "metrics.jsonl"])
def test_every_file_of_a_users_folder_counts(tmp_path, name):
    folder = tmp_path / "data" / "part" / name
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("1")
    before = input_digest(tmp_path / "data")
    (folder / "a.jsonl").write_text("2")
    assert input_digest(tmp_path / "data") != before


def test_scratch_of_a_stage_inside_a_users_folder_does_not_count(tmp_path):
    make(tmp_path / "runs" / "01")
    before = input_digest(tmp_path / "runs")
    (tmp_path / "runs" / "01" / "metrics.jsonl").write_text("1")
    (tmp_path / "runs" / "01" / "round" / "logs").mkdir(parents=True)
    (tmp_path / "runs" / "01" / "round" / "logs" / "a").write_text("1")
    assert input_digest(tmp_path / "runs") == before


def test_file_names_of_another_encoding_can_be_digested(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    names = [b"caf\xe9.jsonl", b"caf\xe8.jsonl", b"caf\\udce9.jsonl"]
    digests = set()
    for name in names:
        file = data / os.fsdecode(name)
        file.write_text("1")
        digests.add(input_digest(data))
        folder = open_run_folder(tmp_path / "01", "demo", {}, {"d": data}, [file])
        file.rename(folder.path / file.name)
        finish_run_folder(folder, {"metrics": {}})
        assert list(read_manifest(folder.path)["product"]) == [file.name]
    assert len(digests) == len(names)


def test_manifest_names_versions_and_product(tmp_path):
    make(tmp_path / "01")
    manifest = json.loads((tmp_path / "01" / "manifest.json").read_text())
    assert manifest["versions"]["torch"]
    assert list(manifest["product"]) == ["product.txt"]
    with pytest.raises(DataError, match="not finished"):
        read_manifest(tmp_path)


def test_two_runs_never_share_a_directory(tmp_path):
    code = f"""
from pathlib import Path
from plait.core.run_folder import exclusive
with exclusive(Path({str(tmp_path / "01")!r})):
    pass
"""
    command = [sys.executable, "-c", code]
    make(tmp_path / "01")
    before = input_digest(tmp_path)
    with exclusive(tmp_path / "01"):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "another plait run" in refused.stderr
        assert make(tmp_path / "01", {"a": 2}).set_aside is not None
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "another plait run" in refused.stderr
    subprocess.run(command, check=True)
    assert input_digest(tmp_path) == before


def test_a_run_folder_stands_for_its_model(tmp_path):
    assert model_directory(tmp_path) == tmp_path
    assert str(model_directory("nvidia/some-model")) == "nvidia/some-model"
    (tmp_path / "model").mkdir()
    assert model_directory(tmp_path) == tmp_path
    (tmp_path / "model" / "config.json").write_text("{}")
    assert model_directory(tmp_path) == tmp_path / "model"
