"""Log-probabilities in the two forms that OpenAI's API has."""

import codecs
from collections.abc import Sequence
from typing import Any

from plait.data.tokenizer import Tokenizer
from plait.engine.request import TokenLogprob


class TokenNames:
    """What tokens are called: their text, special tokens by their name, and bytes that are no text
    as `bytes:\\xe2\\x80`, so that two tokens never share a name for want of characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._special = {id_: text for text, id_ in tokenizer.special_ids.items()}

    def name(self, token: int) -> str:
        """Return the name of a token."""
        piece = self._bytes[token]
        if not piece:
            return self._special.get(token, f"<token {token}>")
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token."""
        return self._bytes[token]

    def is_special(self, token: int) -> bool:
        """True for tokens that stand for no text."""
        return not self._bytes[token]

    def chat(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        top_logprobs: Sequence[Sequence[TokenLogprob]],
    ) -> dict[str, Any]:
        """Return the `logprobs` of a chat choice: every token of trace and answer, special ones
        left out."""
        content = []
        for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            if self.is_special(token):
                continue
            top = top_logprobs[place] if top_logprobs else []
            content.append(
                self._entry(token, logprob)
                | {"top_logprobs": [self._entry(each.token_id, each.logprob) for each in top]}
            )
        return {"content": content, "refusal": None}

    def plain(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float | None],
        top_logprobs: Sequence[Sequence[TokenLogprob]] | None,
        offsets: Sequence[int],
    ) -> dict[str, Any]:
        """Return the `logprobs` of a plain completion; `offsets`: where its tokens begin."""
        names = [self.name(token) for token in tokens]
        tops = None
        if top_logprobs is not None:
            rows = zip(names, logprobs, top_logprobs, strict=True)
            # The token itself is always among them, as in OpenAI's API.
            tops = [self._by_name(top) | {name: own} if top else None for name, own, top in rows]
        return {
            "tokens": names,
            "token_logprobs": list(logprobs),
            "top_logprobs": tops,
            "text_offset": list(offsets),
        }

    def _by_name(self, top: Sequence[TokenLogprob]) -> dict[str, float | None]:
        return {self.name(each.token_id): each.logprob for each in top}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.name(token),
            "logprob": logprob,
            "bytes": list(self._bytes[token]),
        }


class TextOffsets:
    """Where tokens begin in the text, in characters; one that begins within a character begins
    where that does."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._end = 0

    def take(self, tokens: Sequence[int], *, shows_special: bool = False) -> list[int]:
        """Return the offsets of the next tokens; an echoed prompt shows its special tokens."""
        offsets = []
        for token in tokens:
            piece = self._names.bytes_of(token)
            if piece and piece[0] >> 6 != 0b10:  # what stands before it can become no character now
                self._end += len(self._decoder.decode(b"", final=True))
            offsets.append(self._end)
            self._end += len(self._decoder.decode(piece))
            if not piece and shows_special:
                self._end += len(self._names.name(token))
        return offsets
