import pytest
import torch

from plait.data.tokenizer import Tokenizer
from plait.data.train_tokenizer import train_tokenizer
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    text = "hello world, the cat sat on it. User Assistant <think>\nso\n</think>\n\nyes é € "
    return train_tokenizer([text] * 4, vocab_size=300)


@pytest.fixture(scope="session")
def model(tokenizer) -> HybridLM:
    # Wider than the tokenizer, as padded vocabularies are.
    spec = ModelSpec.preset("test").model_copy(update={"vocab_size": tokenizer.vocab_size + 7})
    return init_weights(HybridLM(spec, dtype=torch.float64), seed=0)
