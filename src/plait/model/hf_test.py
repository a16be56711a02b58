import json

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from plait.core.errors import CheckpointError
from plait.model import hf
from plait.model.hf import load, save
from plait.model.spec import ModelSpec

SPEC = ModelSpec.preset("test")


@pytest.fixture
def saved(random_model, tmp_path):
    model = random_model(SPEC, torch.float32)
    save(model, tmp_path / "model")
    return model, tmp_path / "model"


def edit_json(path, **changes):
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in value.items() if v is not ...}))


# ---- weights ----


def test_round_trip_keeps_bytes_and_mixed_dtypes(random_model, tmp_path):
    model = random_model(SPEC, torch.bfloat16)
    for layer in model.backbone.layers[::2]:
        layer.norm.float()
    model.backbone.layers[0].mixer.A_log = torch.nn.Parameter(torch.rand(6))
    save(model, tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    first, second = (p / "model.safetensors" for p in (tmp_path / "a", tmp_path / "b"))
    assert first.read_bytes() == second.read_bytes()
    dtypes = {str(tensor.dtype) for tensor in load_file(first).values()}
    assert dtypes == {"torch.bfloat16", "torch.float32"}


def test_a_full_disk_is_an_os_error_that_names_the_file(saved, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    model, _ = saved
    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(OSError, match=r"Errno 28.*model\.safetensors"):
        save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_shards_hold_the_same_tensors(saved, tmp_path):
    model, directory = saved
    save(model, tmp_path / "shards", max_shard_bytes=60_000)
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert [f.name for f in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    assert max(f.stat().st_size for f in files) < 70_000
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * SPEC.num_parameters
    whole = load_file(directory / "model.safetensors")
    for name, tensor in load(tmp_path / "shards").state_dict().items():
        assert torch.equal(tensor, whole[name])


def test_given_dtype_casts_all_but_decays_which_never_narrow(saved):
    _, directory = saved
    model = load(directory, dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        is_decay = name.endswith(("A_log", ".D", "dt_bias"))
        assert weight.dtype == (torch.float32 if is_decay else torch.bfloat16), name
    tokens = torch.arange(20)[None]
    assert model.hidden(tokens).dtype == torch.bfloat16
    assert {p.dtype for p in load(directory, dtype=torch.float64).parameters()} == {torch.float64}


def test_changing_a_loaded_model_leaves_the_file_alone(saved):
    _, directory = saved
    before = (directory / "model.safetensors").read_bytes()
    model = load(directory)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert (directory / "model.safetensors").read_bytes() == before
    assert all(p.requires_grad for p in model.parameters())


def test_saving_over_a_model_replaces_it_and_keeps_other_files(saved, random_model):
    model, directory = saved
    save(model, directory, max_shard_bytes=60_000)
    (directory / "tokenizer.json").write_text("{}")
    loaded = load(directory)
    save(loaded, directory)
    assert sorted(p.name for p in directory.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_saving_over_a_model_keeps_the_users_card_and_generation_config(saved):
    model, directory = saved
    (directory / "README.md").write_text("mine")
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 11, 12]}')
    save(load(directory), directory)
    assert (directory / "README.md").read_text() == "mine"
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 11, 12]}
    assert torch.equal(load(directory).lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("name", ["absent", "file"])
def test_a_tokenizer_that_is_no_directory_is_refused(saved, tmp_path, name):
    model, _ = saved
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"{name}: no such directory; tokenizer files are"):
        save(model, tmp_path / "out", tokenizer_from=tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_tokenizer_files_are_copied(saved, tmp_path):
    model, _ = saved
    source = tmp_path / "tokenizer"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "notes.txt"):
        (source / name).write_text(name)
    save(model, tmp_path / "out", tokenizer_from=source)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert not (tmp_path / "out" / "notes.txt").exists()


def test_a_folder_that_is_no_model_is_not_replaced(saved, tmp_path):
    model, _ = saved
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("dear")
    with pytest.raises(CheckpointError, match=r"not empty and holds no config.json"):
        save(model, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "dear"


def test_a_file_is_not_replaced(saved, tmp_path):
    model, _ = saved
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(CheckpointError, match=r"thesis.txt: is a file; a model is a directory"):
        save(model, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def test_multi_token_prediction_heads_are_dropped(saved):
    model, directory = saved
    path = directory / "model.safetensors"
    save_file(load_file(path) | {"mtp.layers.0.norm.weight": torch.ones(3)}, path)
    assert torch.equal(load(directory).lm_head.weight, model.lm_head.weight)


NORM = "backbone.layers.2.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({NORM: None}, rf"model: {NORM} of shape \(48,\) not found"),
        ({"rope.freqs": torch.ones(3)}, r"model.safetensors: tensor rope.freqs has no place"),
        ({NORM: torch.ones(48).to(torch.int8)}, rf"{NORM} is stored as I8; plait reads F64, F32"),
        (
            {NORM: torch.ones(47)},
            rf"model.safetensors: tensor {NORM} has shape \(47,\), config.json asks for \(48,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, message):
    _, directory = saved
    path = directory / "model.safetensors"
    tensors = load_file(path) | change
    save_file({name: t for name, t in tensors.items() if t is not None}, path)
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_broken_directories_are_named(saved, tmp_path):
    model, directory = saved
    save(model, tmp_path / "shards", max_shard_bytes=60_000)
    (tmp_path / "shards" / "model-00002-of-00007.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index.json: shard model-00002.* is not in"):
        load(tmp_path / "shards")
    for text in ("{}", "[]", '{"weight_map": null}', '{"weight_map": {"a": 1}}'):
        (tmp_path / "shards" / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"index.json: not a safetensors index"):
            load(tmp_path / "shards")

    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a readable safetensors"):
        load(directory)
    path.rename(directory / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"no model\*.safetensors file; pytorch_model.bin is a p"
    ):
        load(directory)
    (directory / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json: not a JSON object"):
        load(directory)
    for text in ('{"time_step_max": {"__float__": "x"}}', '{"time_step_max": {"__float__": []}}'):
        (directory / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config.json: not valid JSON: .*float"):
            load(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: not valid JSON"):
        load(directory)
    with pytest.raises(CheckpointError, match=r"absent: no such file; a model is a directory"):
        load(tmp_path / "absent")


def test_hub_id_without_network_is_one_clear_error():
    with pytest.raises(CheckpointError, match="nobody/nothing: no such directory, and the hub"):
        load("nobody/nothing")


# ---- the same model in transformers ----

# transformers 5.23 leaves its config file open when it reads it.
foreign = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
FOREIGN_SHAPES = {
    "all kinds": {},
    "wide": {"pattern": "MM-*M-", "mamba_num_heads": 8, "mamba_head_dim": 80, "num_groups": 4},
    "clamped": {"time_step_limit": (0.005, 0.2), "num_key_value_heads": 1, "use_bias": True},
}


def load_foreign(directory):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for layer in model.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            # It clamps at time_step_min instead of the configured limit.
            layer.mixer.time_step_limit = tuple(model.config.time_step_limit)
    return model


@foreign
@pytest.mark.parametrize("shape", FOREIGN_SHAPES)
def test_transformers_computes_the_same_logits(random_model, tmp_path, shape):
    spec = ModelSpec.preset("test", **FOREIGN_SHAPES[shape])
    ours = random_model(spec, torch.float32)
    save(ours, tmp_path / "ours", max_shard_bytes=100_000)
    theirs = load_foreign(tmp_path / "ours")
    tokens = torch.randint(spec.vocab_size, (2, 291))
    with torch.no_grad():
        got, want = ours(tokens), theirs(tokens).logits
    assert want.std() > 0.5
    assert (got - want).abs().max() <= 1e-4

    theirs.save_pretrained(tmp_path / "theirs")
    back = load(tmp_path / "theirs")
    assert back.spec == spec
    with torch.no_grad():
        assert torch.equal(back(tokens), got)


@foreign
def test_transformers_reads_generation_config(saved):
    from transformers import GenerationConfig

    config = GenerationConfig.from_pretrained(saved[1])
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, [2, 12], 12)


def test_files_are_safetensors_for_torch(saved):
    _, directory = saved
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    card = (directory / "README.md").read_text()
    assert "| parameters | 77,406 |" in card
