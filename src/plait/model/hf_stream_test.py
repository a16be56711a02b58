import json

import pytest
import torch

from plait.core.errors import CheckpointError, ConfigError
from plait.model.hf import load, save
from plait.model.hf_stream import ModelDirectory
from plait.model.spec import ModelSpec
from plait.model.state import ForwardContext

SPEC = ModelSpec.preset("test", use_bias=True)


@pytest.fixture
def saved(random_model, tmp_path):
    model = random_model(SPEC, torch.bfloat16)
    model.backbone.layers[0].mixer.A_log = torch.nn.Parameter(torch.rand(6))
    save(model, tmp_path / "model", max_shard_bytes=30_000)
    return model, tmp_path / "model"


def test_tensors_are_those_of_the_whole_model(saved):
    model, directory = saved
    source = ModelDirectory(directory)
    assert source.spec == SPEC
    assert source.dtype == torch.bfloat16
    assert len(source.files) > 3
    assert list(source.shapes) == list(model.state_dict())
    for name, weight in model.state_dict().items():
        assert torch.equal(source.tensor(name), weight)
        assert source.tensor(name, torch.float64).dtype == torch.float64
    assert source.tensor("backbone.layers.0.mixer.A_log", torch.bfloat16).dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 40, 97, 500])
def test_blocks_of_rows_make_the_matrix(saved, rows):
    model, directory = saved
    blocks = list(ModelDirectory(directory).row_blocks("lm_head.weight", rows))
    assert [start for start, _ in blocks] == list(range(0, 97, rows))
    assert torch.equal(torch.cat([block for _, block in blocks]), model.lm_head.weight)


def test_layers_one_by_one_compute_what_the_model_does(saved):
    _, directory = saved
    source, model = ModelDirectory(directory), load(directory, torch.float64)
    x = torch.randn(2, 21, 48, dtype=torch.float64)
    with torch.no_grad():
        for index, layer in enumerate(model.backbone.layers):
            alone = source.layer(index, torch.float64)
            assert not any(weight.requires_grad for weight in alone.parameters())
            assert torch.equal(alone(x, ForwardContext(None)), layer(x, ForwardContext(None)))


def test_incomplete_directories_are_refused_before_anything_is_read(saved, tmp_path):
    _, directory = saved
    with pytest.raises(CheckpointError, match=r"a model of this config has no tensor lm_head.bias"):
        ModelDirectory(directory).tensor("lm_head.bias")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"use_conv_bias": False}))
    with pytest.raises(CheckpointError, match=r"tensor backbone.layers.0.mixer.conv1d.bias has no"):
        ModelDirectory(directory)
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ConfigError, match="tie_word_embeddings is True"):
        ModelDirectory(directory)
    (directory / "config.json").write_text(json.dumps(config))
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    del index["weight_map"]["lm_head.weight"]
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lm_head.weight of shape \(97, 48\) not found"):
        ModelDirectory(directory)
    with pytest.raises(CheckpointError, match="no such file"):
        ModelDirectory(tmp_path / "nowhere")
