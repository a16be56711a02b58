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
