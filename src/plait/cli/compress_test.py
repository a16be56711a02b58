import itertools
import json
import time

import pytest

from plait.cli.compress import dry_run, run, settings_of
from plait.cli.text import text_source
from plait.core.errors import ConfigError, DataError
from plait.data.tokenizer import Tokenizer
from plait.data.train_tokenizer import train_tokenizer
from plait.model.hf import load, save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

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


@pytest.fixture
def text(tmp_path):
    turns = [
        [{"role": "user", "content": f"Add A{i}."}, {"role": "assistant", "content": "B"}]
        for i in range(60)
    ]
    file = tmp_path / "said.jsonl"
    file.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    return {"conversations": file, "blend": None}


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


def test_a_model_is_cut_and_the_same_command_does_nothing_again(
    parent, text, settings, tmp_path, capsys
):
    out = tmp_path / "child"
    before = {file: file.read_bytes() for file in parent.iterdir()}
    run(str(parent), settings, text, out)
    assert load(out / "model").spec.num_parameters < load(parent).spec.num_parameters
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "Chosen: " in page
    manifest = (out / "manifest.json").read_bytes()
    run(str(parent), settings, text, out)
    assert (out / "manifest.json").read_bytes() == manifest
    assert {file: file.read_bytes() for file in parent.iterdir()} == before
    assert f"child:  {out / 'model'}" in capsys.readouterr().out
    other = settings.model_copy(update={"seed": 5})
    with pytest.raises(ConfigError, match="not empty and holds no work with these settings"):
        run(str(parent), other, text, out)


def test_mistakes_are_told_before_work(parent, text, settings, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    cases = [
        ((str(parent), settings, text, None), "Give --out DIR"),
        ((str(parent), settings, text, full), "not empty"),
        (("nano-12b-v2", settings, text, tmp_path / "a"), "a shape without weights"),
        ((str(parent), settings, {"blend": None}, tmp_path / "a"), "scores need text"),
        ((str(parent), settings, {"blend": tmp_path / "no"}, tmp_path / "a"), "--blend .* exist"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            run(*arguments)
    assert (full / "notes.txt").read_text() == "mine"


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
    with pytest.raises(ConfigError, match="'memory' is required"):
        settings_of(None, {})
    with pytest.raises(ConfigError, match="no size"):
        settings_of(None, {"memory": "lots"})
