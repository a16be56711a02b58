import json

import pytest

from plait.cli.export import check, export
from plait.core.errors import CheckpointError
from plait.model.hf import save
from plait.serve.conftest import tiny_engine

# transformers 5.23 leaves its config file open when it reads it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def directory(tmp_path):
    engine = tiny_engine()
    save(engine.model, tmp_path / "model")
    engine.tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_good_directory_passes_and_the_command_is_printed(directory, capsys):
    export(str(directory))
    said = capsys.readouterr().out
    assert "transformers' logits differ by" in said
    assert f"vllm serve {directory}" in said
    assert "--mamba_ssm_cache_dtype float32" in said
    assert "--tool-call-parser nemotron_json" in said


def test_a_path_is_printed_as_it_is(directory, capsys):
    odd = directory.rename(directory.with_name("w[v2] [bold]"))
    export(str(odd))
    assert f"vllm serve '{odd}'" in capsys.readouterr().out


def test_what_other_engines_would_trip_over_is_named(directory):
    file = directory / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"hybrid_override_pattern": None, "layers_block_type": [
        {"M": "mamba", "*": "attention", "-": "mlp"}[letter]
        for letter in config["hybrid_override_pattern"]
    ]}))  # fmt: skip
    with pytest.raises(CheckpointError, match="hybrid_override_pattern"):
        list(check(directory))
    file.write_text(json.dumps(config))
    tokenizer = directory / "tokenizer_config.json"
    tokenizer.write_text(
        json.dumps(
            json.loads(tokenizer.read_text()) | {"chat_template": "{{ strftime_now('%f') }}"}
        )
    )
    with pytest.raises(CheckpointError, match="chat template differently"):
        list(check(directory))
