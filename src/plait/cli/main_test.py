import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plait.cli import info, main
from plait.model.hf_config import config_from_spec
from plait.model.spec import ModelSpec

PLAIT = str(Path(sys.executable).with_name("plait"))


def plait(*arguments, **options):
    return subprocess.run(
        [PLAIT, *arguments], capture_output=True, text=True, check=False, **options
    )


def test_help_lists_the_verbs():
    result = plait("--help")
    assert result.returncode == 0
    for verb in ("run", "chat", "info", "report"):
        assert verb in result.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys, plait, plait.cli.main;"
        "print([name for name in ('torch', 'transformers', 'datatrove', 'numpy', 'matplotlib')"
        " if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "nowhere"), 2, "error: nowhere: no such recipe folder"),
        (("info", "nano-9b-v3"), 2, "nano-9b-v2"),
        (("report", "nowhere"), 2, "error: nowhere: no such run folder"),
        (("info", "runs/tiny-"), 1, "error: runs/tiny-: no such file; a model is a directory"),
        (("info", "a..b/c"), 1, "error: a..b/c: no such file; a model is a directory"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, code, message, tmp_path):
    result = plait(*arguments, cwd=tmp_path)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rnu",), "No such command 'rnu'. Did you mean 'run'?"),
        (("run",), "Missing argument 'recipe'"),
        (("run", "x", "--utnil", "y"), "--until"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments, message):
    result = plait(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_info_prints_exact_counts():
    result = plait("info", "nano-9b-v2")
    assert result.returncode == 0
    assert "8,888,227,328" in result.stdout


def test_info_prints_a_path_as_it_is(tmp_path):
    spec = ModelSpec.preset("test")
    odd = tmp_path / "w[v2][bold]"
    odd.mkdir()
    (odd / "config.json").write_text(json.dumps(config_from_spec(spec, "float32")))
    result = plait("info", odd.name, cwd=tmp_path)
    assert "w[v2][bold]" in result.stdout


def test_ctrl_c_ends_in_a_sentence_and_not_as_success(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "show", interrupted)
    monkeypatch.setattr(sys, "argv", ["plait", "info", "tiny"])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err


def test_files_in_the_place_of_folders_end_in_a_sentence(tmp_path):
    """And folders in the place of files."""
    recipe = tmp_path / "recipe"
    (recipe / "01_x.toml").mkdir(parents=True)
    result = plait("run", "recipe", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: recipe/01_x.toml: is a directory\n"
    result = plait("compress", "tiny", "--dry-run", "--settings", "recipe", cwd=tmp_path)
    assert result.stderr == "error: recipe: is a directory\n"
    (recipe / "01_x.toml").rmdir()
    (recipe / "01_x.toml").write_text('stage = "tokenizer"\n[inputs]\ndocuments = "./recipe"\n')
    (tmp_path / "file").touch()
    result = plait("run", "recipe", "--out", "file", cwd=tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(r"error: .*file.*: (file exists|not a directory)\n", result.stderr)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_what_may_not_be_written_ends_in_a_sentence(monkeypatch, capsys, number):
    def write(**_):
        raise OSError(number, os.strerror(number), "/mnt/x")

    monkeypatch.setattr(main, "app", write)
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"error: /mnt/x: {os.strerror(number).lower()}\n"


def test_a_full_disk_ends_in_a_sentence(monkeypatch, capsys):
    def write(**_):
        with Path("/dev/full").open("w") as full:
            full.write("x")

    monkeypatch.setattr(main, "app", write)
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 1
    assert (
        "the disk is full; free some space, and the same command goes on" in capsys.readouterr().err
    )
