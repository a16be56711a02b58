"""A tokenizer whose tokens a test chooses and a model that says what a test tells it to say."""

import itertools
from collections import defaultdict

import torch

from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.engine.request import Completion, SamplingParams
from plait.engine.vocabulary import Vocabulary
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

END_OF_TEXT, END_OF_TURN, MARK = 0, 1, 2
NUM_SPECIAL = 3


class ByteTokenizer(Tokenizer):
    """Three special tokens, the 256 bytes, then `words`; encodes by the longest word that fits."""

    def __init__(self, *words: str | bytes) -> None:
        texts = [word.encode() if isinstance(word, str) else word for word in words]
        self.token_bytes = [b""] * NUM_SPECIAL + [bytes([i]) for i in range(256)] + texts
        self.eos_id, self.end_of_turn_id = END_OF_TEXT, END_OF_TURN
        self._by_length = sorted(
            range(NUM_SPECIAL, len(self.token_bytes)), key=lambda i: -len(self.token_bytes[i])
        )

    def encode_plain(self, text: str | bytes) -> list[int]:
        data, ids = text.encode() if isinstance(text, str) else text, []
        while data:
            ids.append(next(i for i in self._by_length if data.startswith(self.token_bytes[i])))
            data = data[len(self.token_bytes[ids[-1]]) :]
        return ids

    encode = encode_plain


def vocabulary(*words: str | bytes) -> Vocabulary:
    return Vocabulary(ByteTokenizer(*words))


class ScriptedModel(HybridLM):
    """Predicts the next token of a script: a whole sequence, found by its first token.

    Behind a script's end it predicts the end of turn. What it knows of a row lies in the state of
    the row; `read` keeps what the rows of each script were fed.
    """

    def __init__(self, tokenizer: ByteTokenizer, *scripts: list[int]) -> None:
        vocab_size = len(tokenizer.token_bytes)
        super().__init__(ModelSpec.preset("test").model_copy(update={"vocab_size": vocab_size}))
        self.scripts = {script[0]: script for script in scripts}
        self.read: dict[int, list[int]] = defaultdict(list)
        self.num_forwards = 0
        self.widest = 0

    def forward(self, tokens, *, cu_seqlens=None, state=None, logits_for=None):
        self.num_forwards += 1
        bounds = [0, tokens.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
        documents = list(itertools.pairwise(bounds))
        pieces = [row[i:j] for row in tokens.tolist() for i, j in documents]
        assert len(pieces) == state.num_sequences
        self.widest = max(self.widest, len(pieces))
        logits = []
        for row, piece in enumerate(pieces):
            length = int(state.lengths[row])
            name = state.ssm[0][row, 0, 0, :1]
            if length == 0:
                name.fill_(piece[0])
            script = self.scripts[int(name)]
            self.read[int(name)] += piece
            assert len(self.read[int(name)]) == length + len(piece)
            for position in range(length + 1, length + len(piece) + 1):
                token = script[position] if position < len(script) else END_OF_TURN
                logits.append(torch.eye(self.spec.vocab_size)[token] * 50)
            state.lengths[row] += len(piece)
        assert state.capacity_tokens >= int(state.lengths.max())
        stacked = torch.stack(logits)
        return stacked.view(*tokens.shape, -1) if logits_for is None else stacked[logits_for]


GREEDY = SamplingParams(temperature=0)
FAKE = ByteTokenizer("think", ">\n\n", "</")


def script(name: int, prompt: str, output: str) -> tuple[list[int], list[int]]:
    """Return a prompt that no other script has, and the whole script."""
    prompt_ids = [NAMES[name], MARK, *FAKE.encode_plain(prompt)]
    return prompt_ids, prompt_ids + FAKE.encode_plain(output)


NAMES = list(range(60, 100))
TRACE = "Assistant\n<think>\n"
PLAIN = "once upon"


def run(output: str, prompt: str = TRACE, **fields) -> tuple[Completion, ScriptedModel]:
    prompt_ids, whole = script(0, prompt, output)
    model = ScriptedModel(FAKE, whole)
    params = SamplingParams(temperature=0, **fields)
    return Engine(model, FAKE).generate([prompt_ids], params)[0], model


NUM = 8


def conversations(num: int) -> list[list[dict[str, str]]]:
    switch = ["", " /no_think"]
    return [
        [{"role": "user", "content": "hello" + " cat" * (i * i % 13) + switch[i % 2]}]
        for i in range(num)
    ]
