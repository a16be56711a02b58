"""Several turns in one sequence: what was sampled, and what stands between.

    prompt | turn, end of turn | responses of tools, next header | turn, end of turn | ...
             weight 1            weight 0                          weight 1

A server renders a conversation anew for every turn and drops earlier traces; within one attempt
they stay, because the policy read them. So an attempt is put together from pieces, here and where
it is sampled, by the same functions.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from plait.align.sft import sample_of
from plait.core.errors import RequestError
from plait.data.pack import Sample
from plait.data.tokenizer import Tokenizer

Message = Mapping[str, Any]

_ASKED = {"role": "user", "content": "-"}
_ANSWERED = {"role": "assistant", "content": "-"}


def attempt_sample(
    prompt: Sequence[Message],
    answer: Sequence[Message],
    tools: Sequence[Any] | None,
    tokenizer: Tokenizer,
) -> Sample:
    """Return prompt and answer as one sample; every turn of the assistant in the answer is learnt.

    Raises: RequestError if they cannot be rendered, or the answer does not begin with the
    assistant.
    """
    if not answer or answer[0].get("role") != "assistant":
        raise RequestError("an answer begins with a turn of the assistant")
    if len(answer) == 1:
        return sample_of([*prompt, *answer], tools, tokenizer)
    turns = [message for message in answer if message.get("role") == "assistant"]
    traced = {isinstance(turn.get("reasoning_content"), str) for turn in turns}
    if len(traced) > 1:
        raise RequestError(
            "some turns of the answer have reasoning_content and others none; give all or none (an "
            "empty one where nothing was thought)"
        )
    thinking = traced == {True}
    ids = tokenizer.encode_conversation(prompt, tools=tools, enable_thinking=thinking)
    weights = [0.0] * len(ids)
    for is_turn, messages in groupby(answer, lambda message: message.get("role") == "assistant"):
        if is_turn:
            for turn in messages:
                alone = sample_of([_ASKED, turn], None, tokenizer)
                piece = [i for i, w in zip(alone.ids, alone.weights, strict=True) if w]
                ids, weights = [*ids, *piece], [*weights, *[1.0] * len(piece)]
        else:
            piece = following_ids(tokenizer, list(messages), thinking)
            ids, weights = [*ids, *piece], [*weights, *[0.0] * len(piece)]
    return Sample(ids, weights)


def following_ids(tokenizer: Tokenizer, messages: Sequence[Message], thinking: bool) -> list[int]:
    """Return what the template prints between an assistant's turn and the next one, given the
    messages between them."""
    end = tokenizer.end_of_turn_id
    before = tokenizer.encode_conversation([_ASKED], enable_thinking=thinking).count(end)
    ids = tokenizer.encode_conversation([_ASKED, _ANSWERED, *messages], enable_thinking=thinking)
    places = [place for place, token in enumerate(ids) if token == end]
    return ids[places[before] + 1 :]
