"""Traces taken out of conversations, or cut short, as the report's fine-tuning has them.

    as it is       <think> ... the whole trace ... </think> answer
    taken out      <think></think> answer             a model learns to answer at once
    cut short      <think> ... 1,000 to 2,000 tokens </think> answer      and to live on a budget

The report takes out about 10 % in its first stage, cuts abruptly at 1,000 to 2,000 tokens in its
third, and has about 5 % of cut ones in all of its post-training data (sections 1 and 3.2).
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from plait.align.records import Message, conversation_messages
from plait.core.config import Settings
from plait.core.errors import DataError, RequestError
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer

Share = Annotated[float, Field(ge=0, le=1)]


class TraceSettings(Settings):
    """What becomes of the traces of given conversations."""

    reasoning_off_share: Share = 0.0
    """Share of conversations whose traces are taken out."""
    truncated_share: Share = 0.0
    """Share of conversations whose traces stop early; those that are short enough stay."""
    truncated_tokens: tuple[int, int] = (1000, 2000)
    """Fewest and most tokens of a trace that stops early."""

    @model_validator(mode="after")
    def _check(self) -> "TraceSettings":
        if self.reasoning_off_share + self.truncated_share > 1:
            raise ValueError(
                f"reasoning_off_share {self.reasoning_off_share} and truncated_share "
                f"{self.truncated_share} exceed 1 together"
            )
        if not 0 < self.truncated_tokens[0] <= self.truncated_tokens[1]:
            raise ValueError(
                f"truncated_tokens are [fewest, most], from 1 on; found {self.truncated_tokens}"
            )
        return self


def with_shorter_traces(
    record: Mapping[str, Any], settings: TraceSettings, tokenizer: Tokenizer, seed: int
) -> Mapping[str, Any]:
    """Return a conversation as it is, without its traces, or with traces cut short.

    Which it is depends on `seed` and its messages alone.
    Raises: DataError if it has no messages.
    """
    messages = conversation_messages(record)
    what = repr(messages)
    draw = mix_seed(seed, "traces", what) / 2**63
    off, cut = settings.reasoning_off_share, settings.truncated_share
    if draw >= off + cut:
        return record
    least, most = settings.truncated_tokens
    length = 0 if draw < off else least + mix_seed(seed, "length", what) % (most - least + 1)
    kept = {key: value for key, value in record.items() if key not in ("prompt", "completion")}
    return {**kept, "messages": [_shortened(each, length, tokenizer) for each in messages]}


def _shortened(message: Message, length: int, tokenizer: Tokenizer) -> Message:
    """Return a message with at most `length` tokens of its trace, without any for 0."""
    trace = message.get("reasoning_content")
    if not isinstance(trace, str):
        return message
    if not length:
        return {key: value for key, value in message.items() if key != "reasoning_content"}
    try:
        ids = tokenizer.encode_plain(trace)
    except RequestError as error:
        raise DataError(f"a trace: {error}") from None
    if len(ids) <= length:
        return message
    # a character may be cut in the middle
    return {**message, "reasoning_content": tokenizer.decode(ids[:length]).rstrip("\ufffd")}
