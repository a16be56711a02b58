"""Answers of a given form: a JSON schema, a regular expression or a Lark grammar.

llguidance tells which tokens may follow; what is here hands it the tokenizer, turns its errors into
ours and its bits into a mask. A grammar is compiled once per text; each request copies the result.
"""

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from plait.core.errors import PlaitError, RequestError
from plait.engine.request import Grammar

# Each may hold a hundred megabytes once it has been used.
_CACHED_GRAMMARS = 16
_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')
MAX_MULTIPLE = 100_000
"""Of a schema's different `multipleOf`, multiplied: the automaton that divides has as many states
at worst, and this many take a second and 50 MB."""


class GrammarCompiler:
    """Makes matchers for one tokenizer; llguidance is loaded at the first grammar.

    Raises (on use): RequestError if llguidance is missing.
    """

    def __init__(
        self, token_bytes: Sequence[bytes], end_id: int, end_ids: Iterable[int], encode: Any
    ) -> None:
        self._token_bytes, self._end_id, self._encode = token_bytes, end_id, encode
        self._end_ids = torch.tensor(sorted(end_ids))
        self._tokenizer: Any = None
        self._compile = lru_cache(_CACHED_GRAMMARS)(self._compile_new)

    def matcher(self, grammar: Grammar) -> "Matcher":
        """Return a matcher at the beginning of an answer.

        Raises: RequestError if the grammar cannot be read or nothing can satisfy it.
        """
        return Matcher(self._compile(grammar.kind, grammar.source).deep_copy(), self._end_ids)

    def _compile_new(self, kind: str, source: str) -> Any:
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise RequestError(
                "a grammar needs llguidance, which is not installed: pip install 'plait[serve]'"
            ) from None
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        _check_multiples(kind, source)
        try:
            if kind == "json_schema":
                strict = {"whitespace_flexible": False}
                text = LLMatcher.grammar_from_json_schema(source, overrides=strict)  # pyright: ignore
            elif kind == "regex":
                text = LLMatcher.grammar_from_regex(source)
            else:
                text = LLMatcher.grammar_from_lark(source)
        except ValueError as error:
            raise RequestError(f"the {kind} cannot be read: {error}") from None
        matcher = LLMatcher(self._tokenizer, text, log_level=0)
        if error := matcher.get_error():
            raise RequestError(f"the {kind} cannot be used: {_first_line(error)}")
        if not any(matcher.compute_bitmask()):
            raise RequestError(f"no text satisfies the {kind}")
        return matcher

    def _load_tokenizer(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(
            TokenizerWrapper(_Tokens(self._token_bytes, self._end_id, self._encode)),
            n_vocab=len(self._token_bytes),
        )


class Matcher:
    """How far an answer has come, and what may follow."""

    def __init__(self, matcher: Any, end_ids: Tensor) -> None:
        self._matcher, self._end_ids = matcher, end_ids
        self._num_ids = 0

    @property
    def is_complete(self) -> bool:
        """True if nothing more may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> Tensor:
        """Return a mask over the token ids, bool (V,) on the CPU; the ends of an output are allowed
        where the answer may end."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        mask = bits > 0
        mask[self._end_ids] = self._matcher.is_accepting()
        return mask

    def consume(self, token: int) -> None:
        """Take the next token of the answer.

        Raises: PlaitError if the grammar does not allow it or grew beyond its limits.
        """
        if not self._matcher.consume_token(token):
            raise PlaitError(f"the grammar failed: {_first_line(self._matcher.get_error())}")


class _Tokens:
    """What llguidance's TokenizerWrapper asks of a tokenizer."""

    def __init__(self, token_bytes: Sequence[bytes], end_id: int, encode: Any) -> None:
        self.eos_token_id, self.bos_token_id = end_id, None
        # Special tokens have no bytes of their own; a name none of them spells keeps them apart.
        self.tokens = [
            piece or f"<|special_{id_}|>".encode() for id_, piece in enumerate(token_bytes)
        ]
        self.special_token_ids = [id_ for id_, piece in enumerate(token_bytes) if not piece]
        self._encode = encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _check_multiples(kind: str, source: str) -> None:
    """Raises: RequestError if dividing takes an automaton that takes seconds and gigabytes."""
    found = sorted({float(number) for number in _MULTIPLE.findall(source)})
    size = math.prod(max(value, 1 / value) for value in found if value > 0)
    if size > MAX_MULTIPLE:
        raise RequestError(
            f"the {kind} asks for multiples of {' and '.join(map(str, found[:4]))}; their product "
            f"may be at most {MAX_MULTIPLE:,}, check them in the answer instead"
        )


def _first_line(error: str) -> str:
    return error.strip().splitlines()[0] if error.strip() else "unknown error"
