"""What of the text that is given is drawn."""

import itertools
import json

import pytest

from plait.cli.text import text_source
from plait.core.errors import DataError
from plait.data.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["Add A1, B2."] * 9, vocab_size=310).save(folder)
    return folder


def write_conversations(file, answers):
    turns = [
        [{"role": "user", "content": f"Add A{i}."}, {"role": "assistant", "content": answer}]
        for i, answer in enumerate(answers)
    ]
    file.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    return file


def drawn(batches, number):
    """Return the texts of some batches, as tuples of token ids."""
    found = []
    for _ in range(number):
        batch = next(batches)
        bounds = batch.cu_seqlens.tolist()
        found += [tuple(batch.tokens[0, i:j].tolist()) for i, j in itertools.pairwise(bounds)]
    return found


def test_conversations_that_do_not_fit_a_row_do_not_count_as_found(tokenizer, tmp_path):
    short, long = ["B"] * 600, ["B " * 400] * 600
    mixed = itertools.chain.from_iterable(zip(short, long, strict=True))
    file = write_conversations(tmp_path / "mixed.jsonl", mixed)
    source = text_source({"conversations": file}, tokenizer, 0.7)
    texts = drawn(source(64, 1, 300, 0), 300)
    assert max(map(len, texts)) <= 64
    assert len(set(texts)) == len(texts)  # nothing is repeated while there is more
    source(64, 1, 300, 0, num_new=200)
    with pytest.raises(DataError, match=r"600 texts that fit a row .* lower"):
        source(64, 1, 900, 0, num_new=900)


@pytest.mark.parametrize(("share", "num_spoken"), [(0.0, 0), (0.01, 0), (0.3, 6), (1.0, 20)])
def test_each_kind_of_text_has_its_share(tokenizer, tmp_path, share, num_spoken):
    said = write_conversations(tmp_path / "said.jsonl", ["B"] * 90)
    documents = tmp_path / "documents.jsonl"
    documents.write_text((json.dumps({"text": "C1 " * 90, "id": "c"}) + "\n") * 90)
    inputs = {"conversations": said, "documents": documents}
    batches = text_source(inputs, tokenizer, share)(64, 1, 20, 0, num_new=20)
    starts = [int(next(batches).tokens[0, 0]) for _ in range(20)]
    only_said = text_source({"conversations": said}, tokenizer, share)(64, 1, 20, 0)
    assert starts.count(int(next(only_said).tokens[0, 0])) == num_spoken
