"""A tiny model directory with its tokenizer, shared by the tests of all stages."""

import pytest

from plait.data.train_tokenizer import train_tokenizer
from plait.model.hf import save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

TEXTS = ["Cards: A1, B2. Last digit of the sum of A, B? Answer: 3\n</think>\n\n<think>\n"] * 9


@pytest.fixture(scope="session")
def base_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer(TEXTS, vocab_size=330).save(folder / "tokenizer")
    model = init_weights(HybridLM(ModelSpec.preset("test", vocab_size=330)), 0)
    save(model, folder / "model", tokenizer_from=folder / "tokenizer")
    return folder / "model"
