import json
import logging

import pytest

from plait.core.errors import ConfigError, DataError
from plait.data.documents import read_documents
from plait.data.tokenizer import Tokenizer
from plait.data.train_tokenizer import TokenizerSettings, run, sample_text, train_tokenizer

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def write_documents(folder, **texts):
    directory = folder / "documents" / "train"
    directory.mkdir(parents=True)
    for category, documents in texts.items():
        lines = [json.dumps({"text": text, "id": str(i)}) for i, text in enumerate(documents)]
        (directory / f"{category}.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


@pytest.fixture
def documents(tmp_path):
    greek = [" ".join(WORDS[i % 10 :] + WORDS[: i % 7]) for i in range(200)]
    return write_documents(tmp_path / "curate", greek=greek, digits=["12 345 6789"] * 50)


def test_stage_writes_a_tokenizer_directory_the_same_each_time(documents, tmp_path):
    settings = TokenizerSettings(vocab_size=370, num_special_tokens=16, chat_share=0.3)
    for out in ("first", "second"):
        metrics = run(settings, {"documents": documents}, tmp_path / out)
        assert metrics["vocab_size"] == 370
    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert files == [
        "fertility.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()

    tokenizer = Tokenizer.from_directory(tmp_path / "first")
    assert len(tokenizer.encode(" epsilon")) == 1
    # Words of the chat template are learnt though no document holds them.
    for text, num_tokens in (("System", 1), ("Assistant", 1), ("<think>\n", 2), ("</think>", 3)):
        assert len(tokenizer.encode(text)) == num_tokens
    config = json.loads((tmp_path / "first" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == tokenizer.chat_template
    assert config["added_tokens_decoder"]["12"]["content"] == "<SPECIAL_12>"


def test_vocabulary_that_is_too_small_gets_the_arithmetic():
    with pytest.raises(ConfigError, match=r"vocab_size = 271 is too small: 16 special .* = 272"):
        train_tokenizer(["x"], vocab_size=271, num_special_tokens=16)
    with pytest.raises(ConfigError, match="num_special_tokens = 12 is too small"):
        train_tokenizer(["x"], vocab_size=1_000, num_special_tokens=12)
    assert train_tokenizer(["x"], vocab_size=272).vocab_size == 272


def test_text_that_is_too_short_warns(caplog):
    with caplog.at_level(logging.WARNING):
        assert train_tokenizer(["abab abab"], vocab_size=1_000).vocab_size < 300
    assert "of 1000 vocabulary entries" in caplog.text


def test_empty_and_missing_corpora_are_refused(tmp_path):
    settings = TokenizerSettings(vocab_size=300, num_special_tokens=16)
    with pytest.raises(DataError, match="run the curation stage first"):
        run(settings, {"documents": tmp_path}, tmp_path / "out")
    folder = write_documents(tmp_path / "curate", empty=[], blank=[""])
    with pytest.raises(DataError, match="hold no text"):
        run(settings, {"documents": folder}, tmp_path / "out")


def test_categories_are_sampled_by_weight(documents, tmp_path):
    def characters(**more):
        settings = TokenizerSettings(
            vocab_size=300, num_special_tokens=16, characters_per_category=400, **more
        )
        metrics = run(settings, {"documents": documents}, tmp_path / "out")
        return metrics["characters.greek"], metrics["characters.digits"]

    assert characters() == (400, 400)
    assert characters(weights={"greek": 2.5, "digits": 0.25}) == (1000, 100)
    assert characters(weights={"digits": 0}) == (400, 0)
    with pytest.raises(ConfigError, match="no category 'greak'; did you mean 'greek'"):
        characters(weights={"greak": 1})
    with pytest.raises(ConfigError, match="must not be negative; wrong: greek"):
        TokenizerSettings.parse({"weights": {"greek": -1}}, "recipe")


@pytest.mark.parametrize("budget", [1, 100, 999, 2_000, 10**6])
def test_sampling_spends_the_budget_evenly(tmp_path, budget):
    # Each document is a letter of its own, so that the sample tells where it is from.
    texts = [chr(0x4E00 + i) * (i % 20 + 1) for i in range(400)]
    total = sum(map(len, texts))
    file = write_documents(tmp_path, all=texts) / "documents" / "train" / "all.jsonl"
    sample = "".join(sample_text([file], total, budget))
    assert len(sample) == min(budget, total)
    if budget in (999, 2_000):
        first_half = sum(letter < chr(0x4E00 + 200) for letter in sample)
        assert abs(first_half - budget / 2) <= 20


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', "line 2: not a JSON document"),
        (b"\xff\xfe", "line 2: not a JSON document"),
        (b"[1]", "line 2: a document needs a text field"),
        (b'{"text": 3}', "line 2: a document needs a text field"),
        (b'{"text": "\\ud800 x"}', "line 2: half of a surrogate pair"),
    ],
)
def test_lines_that_are_no_documents_are_named(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "\\ud83d\\ude00"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, {message}"):
        list(read_documents([file]))
