import itertools
import json
import re
import time

import openai
import pytest
import torch

from plait.cli.compress import cut_alike, dry_run, run, settings_of
from plait.cli.text import text_source
from plait.core.errors import ConfigError, DataError
from plait.data.tokenizer import Tokenizer
from plait.data.train_tokenizer import train_tokenizer
from plait.engine.engine import Engine
from plait.model.hf import load, save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.serve.conftest import MODEL, serving

SETTINGS = """
memory = "345KiB"
calibration_rows = 4
row_tokens = 64
held_out_rows = 2
top_k = 1
num_threads = 1
[workload]
context_tokens = 64
prefill_chunk_tokens = 16
dtype = "float32"
kv_dtype = "float32"
device = "cpu"
fixed = "0B"
[ranges]
num_layers = [5, 5, 1]
keep_attention = 1
hidden_size = [40, 48, 8]
intermediate_size = [64, 80, 16]
mamba_num_heads = [4, 6, 2]
"""


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    train_tokenizer(["Cards: A1, B2. Add A, B."] * 9, vocab_size=310).save(folder / "tokenizer")
    vocab_size = Tokenizer.from_directory(folder / "tokenizer").vocab_size
    model = init_weights(HybridLM(ModelSpec.preset("test", vocab_size=vocab_size)), 3)
    save(model, folder / "model", tokenizer_from=folder / "tokenizer")
    return folder / "model"


def write_conversations(file, number):
    turns = [
        [{"role": "user", "content": f"Add A{i}."}, {"role": "assistant", "content": "B"}]
        for i in range(number)
    ]
    file.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))


@pytest.fixture
def text(tmp_path):
    write_conversations(tmp_path / "said.jsonl", 60)
    return {"conversations": tmp_path / "said.jsonl", "blend": None}


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(SETTINGS)
    return settings_of(file, {})


def test_the_report_s_question_is_answered_from_a_name(capsys):
    given = {"memory": "19.66GiB", "workload.context_tokens": 131_072, "workload.batch": 1}
    given["ranges.num_layers"] = [56, 56, 1]  # the other depths take seconds more under beartype
    started = time.monotonic()
    dry_run("nano-12b-v2", settings_of(None, given), 5)
    assert time.monotonic() - started < 30
    printed = capsys.readouterr().out
    assert "12,310,001,152 parameters, does not fit" in printed
    [line] = [line for line in printed.splitlines() if line.endswith("<- nano-9b-v2")]
    for cell in ("56 = 27+4+25", "4,480", "15,680", "128 x 80", "8,888,227,328", "2.000 GiB"):
        assert cell in line
    assert len(printed.splitlines()) == 3 + 1 + 1 + 1 + 5 + 1


@pytest.fixture(scope="module")
def child(parent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("child")
    file, said = folder / "settings.toml", folder / "said.jsonl"
    file.write_text(SETTINGS)
    write_conversations(said, 60)
    before = {file: file.read_bytes() for file in parent.iterdir()}
    run(str(parent), settings_of(file, {}), {"conversations": said}, folder / "child")
    assert {file: file.read_bytes() for file in parent.iterdir()} == before
    return folder / "child"


def test_the_same_command_does_nothing_again(parent, child, capsys):
    assert load(child / "model").spec.num_parameters < load(parent).spec.num_parameters
    page = (child / "report.html").read_text()
    assert "<svg" in page
    assert "Chosen: " in page
    manifest = (child / "manifest.json").read_bytes()
    settings = settings_of(child.with_name("settings.toml"), {})
    text = {"conversations": child.with_name("said.jsonl")}
    run(str(parent), settings, text, child)
    assert (child / "manifest.json").read_bytes() == manifest
    assert f"child:  {child.resolve() / 'model'}" in capsys.readouterr().out
    other = settings.model_copy(update={"seed": 5})
    with pytest.raises(ConfigError, match="not empty and holds no work with these settings"):
        run(str(parent), other, text, child)


def test_a_child_is_served_and_says_what_it_predicts(child):
    model, tokenizer = load(child / "model"), Tokenizer.from_directory(child / "model")
    prompt = "Add A1."
    ids = tokenizer.encode_plain(prompt)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    engine = Engine.from_path(child / "model", max_context=64, max_num_seqs=1, memory_bytes=2**30)
    with serving(engine) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as api:
        answer = api.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0)
    assert answer.choices[0].text == tokenizer.decode(ids[len(tokenizer.encode_plain(prompt)) :])


def test_another_checkpoint_is_cut_alike(parent, child, tmp_path):
    cut_alike(str(parent), child, tmp_path / "same")
    name = "model/model.safetensors"
    assert (tmp_path / "same" / name).read_bytes() == (child / name).read_bytes()
    aligned = init_weights(load(parent), 9)
    save(aligned, tmp_path / "aligned", tokenizer_from=parent)
    cut_alike(str(tmp_path / "aligned"), child, tmp_path / "other")
    assert load(tmp_path / "other" / "model").spec == load(child / "model").spec
    with pytest.raises(ConfigError, match="not empty"):
        cut_alike(str(parent), child, tmp_path / "other")
    with pytest.raises(ConfigError, match="no such file"):
        cut_alike(str(parent), parent, tmp_path / "a")
    with pytest.raises(ConfigError, match="another shape: its pattern is M-M"):
        cut_alike(str(child), child, tmp_path / "a")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pattern", "M-M*-MM"),
        ("hidden_size", 56),
        ("intermediate_size", 96),
        ("vocab_size", 97),
        ("state_size", 32),
        ("mamba_head_dim", 12),
        ("num_key_value_heads", 4),
        ("attention_head_dim", 8),
        ("conv_kernel", 3),
    ],
)
def test_a_model_of_another_shape_is_not_cut_alike(parent, child, tmp_path, field, value):
    spec = load(parent).spec.model_copy(update={field: value})
    save(init_weights(HybridLM(spec), 4), tmp_path / "other")
    with pytest.raises(
        ConfigError, match=f"its {field} is .*, this model's {re.escape(str(value))}"
    ):
        cut_alike(str(tmp_path / "other"), child, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_mistakes_are_told_before_work(parent, text, settings, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    cases = [
        ((str(parent), settings, text, None), "Give --out DIR"),
        ((str(parent), settings, text, full), "holds something else"),
        ((str(parent), settings, text, parent), "holds something else"),
        ((str(parent), settings, text, full / "notes.txt"), "holds something else"),
        (("nano-12b-v2", settings, text, tmp_path / "a"), "a shape without weights"),
        ((str(parent), settings, {"blend": None}, tmp_path / "a"), "scores need text"),
        ((str(parent), settings, {"blend": tmp_path / "no"}, tmp_path / "a"), "--blend .* exist"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            run(*arguments)
    assert [file.read_text() for file in full.iterdir()] == ["mine"]


def test_text_that_would_repeat_is_told_before_work(parent, text, settings, tmp_path):
    """The held-out rows must not be those that were measured on."""
    write_conversations(tmp_path / "few.jsonl", 3)
    few = {"conversations": tmp_path / "few.jsonl"}
    with pytest.raises(DataError, match=r"3 texts .* have \d+ tokens, 384 are needed .* lower"):
        run(str(parent), settings, few, tmp_path / "child")
    assert not (tmp_path / "child" / "scores").exists()
    with pytest.raises(ConfigError, match="no allowed child fits 1 KiB"):  # the folder is free yet
        run(str(parent), settings.model_copy(update={"memory": "1KiB"}), text, tmp_path / "child")
    text_source(few, parent, 0.7)(64, 1, 99, 0)  # who only trains may repeat


def test_text_without_conversations(parent, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="holds no conversations"):
        text_source({"conversations": empty}, parent, 0.7)
    with pytest.raises(ConfigError, match="needs text"):
        text_source({}, parent, 0.7)
    with pytest.raises(ConfigError, match="neither a JSONL file nor a folder"):
        text_source({"conversations": tmp_path}, parent, 0.7)
    with pytest.raises(DataError, match="holds no documents"):
        text_source({"documents": empty}, parent, 0.7)
    with pytest.raises(DataError, match="run the curation stage first"):
        text_source({"documents": tmp_path}, parent, 0.7)
    with pytest.raises(ConfigError, match="give one of them"):
        text_source({"documents": empty, "blend": tmp_path}, parent, 0.7)


@pytest.mark.parametrize("is_folder", [False, True])
def test_curated_documents_are_text_too(parent, tmp_path, is_folder):
    file = tmp_path / "documents" / "train" / "english.jsonl"
    file.parent.mkdir(parents=True)
    texts = [f"Add A{number}. " * number for number in range(1, 30)]
    file.write_text("".join(json.dumps({"text": text, "id": text}) + "\n" for text in texts))
    source = text_source({"documents": tmp_path if is_folder else file}, parent, 0.7)
    tokenizer, batches = Tokenizer.from_directory(parent), source(16, 2, 1000, 0)
    pieces = []
    while (state := batches.state())["epoch"] == 0:
        batch = next(batches)
        if batches.state()["epoch"] > 0:
            break
        bounds = batch.cu_seqlens.tolist()
        pieces += [batch.tokens[0, i:j].tolist() for i, j in itertools.pairwise(bounds)]
        assert state["index"] < 1000
    assert max(map(len, pieces)) == 16
    want = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_plain_batch(texts)]
    cut = [ids[start : start + 16] for ids in want for start in range(0, len(ids), 16)]
    assert sorted(pieces) == sorted(cut)


def test_a_parent_with_tied_embeddings_is_refused(parent, text, settings, tmp_path):
    tied = tmp_path / "tied"
    tied.mkdir()
    for file in parent.iterdir():
        (tied / file.name).write_bytes(file.read_bytes())
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ConfigError, match="tie_word_embeddings is True"):
        run(str(tied), settings, text, tmp_path / "child")


def test_settings_come_from_the_file_and_the_command_line(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(SETTINGS)
    found = settings_of(file, {"memory": "1GiB", "workload.batch": 3, "top_k": None})
    assert (found.memory, found.workload.batch, found.top_k) == ("1GiB", 3, 1)
    assert found.workload.context_tokens == 64
    found = settings_of(file, {"memory": "1GiB"}, ["ranges.align=8", "healing.num_steps=7"])
    assert (found.memory, found.ranges.align, found.healing.num_steps) == ("1GiB", 8, 7)
    with pytest.raises(ConfigError, match="Give --memory"):
        settings_of(None, {})
    with pytest.raises(ConfigError, match="no size"):
        settings_of(None, {"memory": "lots"})
