import pytest

from plait.core.errors import DataError
from plait.data import fertility
from plait.data.fertility import measure_documents
from plait.data.language_test import ARTICLES
from plait.data.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(list(ARTICLES.values()) * 3, vocab_size=600)


def document(text, language="en"):
    return {"id": "1", "text": text, "metadata": {"language": language}}


def test_every_language_comes_back_whole_and_is_measured(tokenizer):
    table = measure_documents(tokenizer, [document(text, code) for code, text in ARTICLES.items()])
    assert list(table) == sorted(ARTICLES)
    for code, row in table.items():
        text = ARTICLES[code]
        assert row["documents"] == 1
        assert row["characters"] == len(text)
        assert row["tokens"] == len(tokenizer.encode_plain(text))
        assert row["bytes_per_token"] == len(text.encode()) / row["tokens"] > 1
        assert (row["tokens_per_word"] is None) == (code in ("zh", "ja", "th"))


def test_words_are_counted_and_a_language_may_be_unknown(tokenizer):
    table = measure_documents(tokenizer, [{"id": "1", "text": "one, two three"}])
    assert table["unknown"]["words"] == 3
    assert measure_documents(tokenizer, [document("")]) == {}


def test_a_language_is_read_up_to_a_limit(tokenizer, monkeypatch):
    monkeypatch.setattr(fertility, "CHARACTERS_PER_LANGUAGE", 25)
    table = measure_documents(tokenizer, [document("x" * 10), document("y", "de")] * 9)
    assert table["en"]["documents"] == 3
    assert table["de"]["documents"] == 9


def test_text_that_does_not_come_back_stops_the_stage(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids: "something else")
    with pytest.raises(DataError, match=r"document '1' \(de\) does not come back"):
        measure_documents(tokenizer, [document("etwas", "de")])
