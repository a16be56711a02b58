import socket

import pytest

from plait.cli.serve import KEY_VARIABLE, Address, read_api_key, serve
from plait.core.errors import CapacityError, CheckpointError, ConfigError, DataError
from plait.model.hf import save
from plait.serve.conftest import tiny_engine


@pytest.fixture
def directory(tmp_path):
    engine = tiny_engine()
    save(engine.model, tmp_path / "model")
    engine.tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def start(directory, port: int = 0, **options):
    defaults = dict.fromkeys(("memory", "context", "max_num_seqs", "api_key_file", "dtype"))
    serve(
        str(directory), Address("127.0.0.1", port), **{**defaults, "prefix_cache": True, **options}
    )


def test_what_cannot_be_served_is_said_before_anything_listens(directory, tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="choose another"),
    ):
        start(directory, taken.getsockname()[1])
    with pytest.raises(CapacityError, match="does not fit"):
        start(directory, memory="1MiB")
    with pytest.raises(CapacityError, match="does not fit"):
        start(directory, memory="0GiB")
    with pytest.raises(ConfigError, match="no size"):
        start(directory, memory="much")
    with pytest.raises(ConfigError, match="float32, bfloat16, float16"):
        start(directory, dtype="float8")
    with pytest.raises(ConfigError, match="No such file"):
        start(directory, api_key_file=tmp_path / "key")
    (directory / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: not a JSON object, but list"):
        start(directory)
    (directory / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        start(directory)


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, "from the environment")
    assert read_api_key(None) == "from the environment"
    (tmp_path / "key").write_text("from the file\n")
    assert read_api_key(tmp_path / "key") == "from the file"
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_api_key(tmp_path / "key")
