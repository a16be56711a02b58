"""Log-probabilities in the two forms that OpenAI's API has."""

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
        offset: int,
    ) -> dict[str, Any]:
        """Return the `logprobs` of a plain completion; `offset`: characters before its first
        token."""
        names = [self.name(token) for token in tokens]
        offsets = []
        for name in names:
            offsets.append(offset)
            offset += len(name)
        tops = None
        if top_logprobs is not None:
            tops = [
                {self.name(each.token_id): each.logprob for each in top} or None
                for top in top_logprobs
            ]
        return {
            "tokens": names,
            "token_logprobs": list(logprobs),
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.name(token),
            "logprob": logprob,
            "bytes": list(self._bytes[token]),
        }
