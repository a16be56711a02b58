"""Conversations to training samples.

A conversation (`messages`, or `prompt` and `completion`; optional `tools`) becomes one sample per
assistant turn. The sample's prompt is what a server would render before that turn, with the traces
of earlier turns dropped as the template drops them; its completion is the turn itself, trace
included. The two are tokenised
apart, so training sees exactly the ids that generation will see, and only the completion carries
loss weight. A turn with `reasoning_content`, even an empty one, is a turn with thinking on; a turn
without is one with thinking off.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from plait.align.records import Refusals, conversation_messages
from plait.core.errors import DataError, RequestError
from plait.data.pack import Sample
from plait.data.tokenizer import Tokenizer

Conversation = Mapping[str, Any]


class SampleSet(NamedTuple):
    """Samples of a data set, and how many were too long to be used."""

    samples: list[Sample]
    num_too_long: int
    conversations: list[Conversation]
    """Those of which samples were made."""


def samples_of(conversation: Conversation, tokenizer: Tokenizer) -> list[Sample]:
    """Return one sample per assistant turn of a conversation.

    Raises: DataError naming the conversation's id if it has no assistant turn, an empty one or one
    with half a trace, or cannot be rendered.
    """
    name = conversation.get("id", "a conversation")
    messages = conversation_messages(conversation)
    turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        raise DataError(f"{name}: no assistant turn, so nothing to learn; remove it")
    for turn in turns:
        _check_turn(messages[turn], name)
    try:
        return [
            sample_of(messages[: turn + 1], conversation.get("tools"), tokenizer) for turn in turns
        ]
    except RequestError as error:
        raise DataError(f"{name}: {error}") from None


def _check_turn(message: Mapping[str, Any], name: str) -> None:
    content = message.get("content")
    if not content and not message.get("tool_calls"):
        raise DataError(
            f"{name}: an assistant turn has neither content nor tool_calls, so it would teach to "
            f"say nothing; its keys: {', '.join(message)}"
        )
    if isinstance(content, str) and "</think>" in content:
        raise DataError(
            f"{name}: an assistant turn has </think> inside its content; give the trace as "
            "`reasoning_content`, or begin the content with <think>"
        )


def sample_of(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, tokenizer: Tokenizer
) -> Sample:
    """Return the sample whose completion is the last message, a turn of the assistant.

    Raises: RequestError if the conversation cannot be rendered.
    """
    thinking = isinstance(messages[-1].get("reasoning_content"), str)
    options = {"tools": tools, "enable_thinking": thinking}
    prompt = tokenizer.render(messages[:-1], **options)
    whole = tokenizer.render(messages, add_generation_prompt=False, **options)
    completion, end, _ = whole.rpartition(tokenizer.decode([tokenizer.end_of_turn_id]))
    if not end or not completion.startswith(prompt):
        raise RequestError("the chat template does not print the last turn after its prompt")
    prompt_ids = tokenizer.encode_conversation(messages[:-1], **options)
    answer_ids = [*tokenizer.encode_plain(completion[len(prompt) :]), tokenizer.end_of_turn_id]
    return Sample([*prompt_ids, *answer_ids], [0.0] * len(prompt_ids) + [1.0] * len(answer_ids))


def build_samples(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    max_tokens: int,
    refusals: Refusals | None = None,
) -> SampleSet:
    """Tokenise conversations; samples of more than `max_tokens` tokens are counted and left out.

    Raises: DataError for a conversation that teaches nothing, unless `refusals` collects it.
    """
    refusals = refusals or Refusals(strict=True)
    samples: list[Sample] = []
    used: list[Conversation] = []
    num_too_long = 0
    for conversation in conversations:
        with refusals.row():
            found = samples_of(conversation, tokenizer)
            fitting = [sample for sample in found if len(sample.ids) <= max_tokens]
            num_too_long += len(found) - len(fitting)
            samples += fitting
            used += [conversation] if fitting else []
    return SampleSet(samples, num_too_long, used)
