"""What the engine knows of a tokenizer: bytes of tokens, ends of texts, how tags are cut."""

from collections.abc import Iterable, Sequence

from plait.core.config import shortened
from plait.core.errors import ConfigError, RequestError
from plait.data.tokenizer import Tokenizer
from plait.engine.budget import TagBans, closing_texts
from plait.engine.grammar import GrammarCompiler


def check_ids(where: str, ids: Iterable[int], num_ids: int) -> None:
    """Refuse ids that no token has.

    Raises: RequestError naming the first one.
    """
    bad = next((id_ for id_ in ids if not 0 <= id_ < num_ids), None)
    if bad is not None:
        raise RequestError(
            f"{where} holds token id {shortened(bad)}; ids run from 0 to {num_ids - 1}"
        )


class Vocabulary:
    """Tables over token ids, made once per engine.

    Raises: ConfigError if the tokenizer cannot write the closing tag; DataError if it is not
    byte-level.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: Iterable[int] = ()) -> None:
        self.token_bytes = tokenizer.token_bytes
        """Bytes of each id; b"" for special tokens."""
        self.end_ids = frozenset({tokenizer.eos_id, tokenizer.end_of_turn_id, *end_ids})
        """Tokens that end an output: end of turn, end of text and what the model's files add."""
        self.bans = TagBans(self.token_bytes, self.end_ids)
        self.grammars = GrammarCompiler(
            self.token_bytes, tokenizer.end_of_turn_id, self.end_ids, tokenizer.encode_plain
        )
        self._closing_ids = {text: tokenizer.encode_plain(text) for text in closing_texts()}
        for text, ids in self._closing_ids.items():
            if b"".join(self.token_bytes[id_] for id_ in ids) != text.encode():
                raise ConfigError(
                    f"the tokenizer does not give {text!r} back unchanged, so a thinking budget "
                    "could not close a trace: use a byte-level tokenizer without normalisation"
                )
        self.num_close_tokens = max(map(len, self._closing_ids.values()))

    def closing_ids(self, text: str) -> list[int]:
        """Return the tokens of a text that closes a trace."""
        return self._closing_ids[text]

    def last_turn(self, prompt_ids: Sequence[int]) -> bytes:
        """Return the text behind the last special token of a prompt."""
        pieces = []
        for id_ in reversed(prompt_ids):
            if not (piece := self.token_bytes[id_]):
                break
            pieces.append(piece)
        return b"".join(reversed(pieces))
