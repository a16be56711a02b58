import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from plait.core.artifact import (
    atomic_directory,
    disk_errors,
    settle_directories,
    write_atomic,
    write_json,
)
from plait.core.errors import ConfigError


def test_write_replaces_whole_files(tmp_path):
    target = tmp_path / "deep" / "a.json"
    write_json(target, {"ü": 1})
    write_json(target, {"ü": 2})
    assert target.read_text() == '{\n  "ü": 2\n}\n'
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a"
    write_atomic(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(target, "\ud800")
    assert target.read_text() == "old"


def test_a_kill_between_the_two_renames_loses_no_version(tmp_path, monkeypatch):
    target = tmp_path / "model"
    with atomic_directory(target) as folder:
        (folder / "file").write_text("old")
    rename, names = type(target).rename, []

    def killed_at_the_second(self, other):
        names.append(other.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return rename(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(type(target), "rename", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt), atomic_directory(target) as folder:
            (folder / "file").write_text("new")
    assert names == [".model.replaced", "model"]
    with atomic_directory(target) as folder:
        assert (target / "file").read_text() == "old"
        (folder / "file").write_text("new")
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_safetensors_says_of_the_disk_is_an_os_error(tmp_path, number):
    said = f'Error while serializing: I/O error: no (os error {number}) at path "/x/.tmp"'
    with (
        pytest.raises(OSError, match=r"a\.safetensors") as caught,
        disk_errors(tmp_path / "a.safetensors"),
    ):
        raise SafetensorError(said)
    assert caught.value.errno == number
    with pytest.raises(SafetensorError, match="invalid shape"), disk_errors(tmp_path):
        raise SafetensorError("invalid shape")


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    for path in (Path(), Path(".."), tmp_path, Path.cwd()):
        with (
            pytest.raises(ConfigError, match=r"the present working directory lies there"),
            atomic_directory(path),
        ):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"

    def build(text, fail=False):
        with atomic_directory(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "file").write_text(text)
            if fail:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        build("half", fail=True)
    assert not target.exists()
    build("one")
    with pytest.raises(RuntimeError):
        build("half", fail=True)
    assert (target / "sub" / "file").read_text() == "one"
    build("two")
    assert (target / "sub" / "file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_kill_left_is_settled(tmp_path):
    """The old version comes back where no new one stands; what is half-written goes."""
    for name in (".a.replaced", ".a.partial", ".b.replaced", "b", ".c.partial", ".other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    settle_directories(tmp_path, "[a-c]")
    assert {path.name: (path / "file").read_text() for path in tmp_path.iterdir()} == {
        "a": ".a.replaced",
        "b": "b",
        ".other.partial": ".other.partial",
    }


def test_a_directory_written_again_leaves_no_older_version(tmp_path):
    (tmp_path / ".model.replaced").mkdir()  # of a kill between the two renames
    with atomic_directory(tmp_path / "model"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
