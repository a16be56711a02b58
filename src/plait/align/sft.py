"""Conversations to training samples, and samples to batches.

A conversation (`messages`, optional `tools`) becomes one sample per assistant turn. The sample's
prompt is what a server would render before that turn, with the traces of earlier turns dropped as
the template drops them; its completion is the turn itself, trace included. The two are tokenised
apart, so training sees exactly the ids that generation will see, and only the completion carries
loss weight. A turn with `reasoning_content`, even an empty one, is a turn with thinking on; a turn
without is one with thinking off.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plait.core.errors import DataError, RequestError
from plait.core.seed import mix_seed
from plait.data.loader import PackedBatch
from plait.data.pack import Sample, first_fit, pack
from plait.data.tokenizer import Tokenizer

Conversation = Mapping[str, Any]


class SampleSet(NamedTuple):
    """Samples of a data set, and how many were too long to be used."""

    samples: list[Sample]
    num_too_long: int


def read_conversations(file: Path) -> Iterator[Conversation]:
    """Yield the conversations of a JSONL file; `id` becomes file and line.

    Raises: DataError for a file that cannot be read, and naming file and line for a line that is
    not JSON or has no list of messages.
    """
    try:
        lines = file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    with lines:
        for number, line in enumerate(lines, 1):
            try:
                conversation = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: not JSON: {error}") from None
            if not isinstance(conversation, dict) or not isinstance(
                conversation.get("messages"), list
            ):
                raise DataError(f"{file}, line {number}: needs a list under `messages`")
            yield {**conversation, "id": f"{file}, line {number}"}


def samples_of(conversation: Conversation, tokenizer: Tokenizer) -> list[Sample]:
    """Return one sample per assistant turn of a conversation.

    Raises: DataError naming the conversation's id if it has no assistant turn or cannot be
    rendered.
    """
    messages = conversation["messages"]
    name = conversation.get("id", "a conversation")
    if not all(isinstance(message, Mapping) for message in messages):
        raise DataError(f"{name}: a message is an object with role and content; found other values")
    turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        raise DataError(f"{name}: no assistant turn, so nothing to learn; remove it")
    try:
        return [
            _sample(messages[: turn + 1], conversation.get("tools"), tokenizer) for turn in turns
        ]
    except RequestError as error:
        raise DataError(f"{name}: {error}") from None


def _sample(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, tokenizer: Tokenizer
) -> Sample:
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
    conversations: Iterable[Conversation], tokenizer: Tokenizer, max_tokens: int
) -> SampleSet:
    """Tokenise conversations; samples of more than `max_tokens` tokens are counted and left out."""
    samples: list[Sample] = []
    num_too_long = 0
    for conversation in conversations:
        for sample in samples_of(conversation, tokenizer):
            if len(sample.ids) > max_tokens:
                num_too_long += 1
            else:
                samples.append(sample)
    return SampleSet(samples, num_too_long)


class SampleBatches:
    """Endless packed batches of whole samples, shuffled anew in every epoch.

    Batch k of epoch e depends on (seed, e, k) alone, so the place is two numbers.
    """

    def __init__(self, samples: Sequence[Sample], tokens_per_batch: int, seed: int) -> None:
        self._samples, self._capacity, self._seed = samples, tokens_per_batch, seed
        self._epoch = self._index = 0
        self._groups = self._pack_epoch(0)

    @property
    def num_batches(self) -> int:
        """Batches of the present epoch; other epochs may pack into a few more or fewer."""
        return len(self._groups)

    def __next__(self) -> PackedBatch:
        if self._index == len(self._groups):
            self.load_state({"epoch": self._epoch + 1, "index": 0})
        group = self._groups[self._index]
        self._index += 1
        return pack([self._samples[index] for index in group])

    def state(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        return {"epoch": self._epoch, "index": self._index}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave."""
        if state["epoch"] != self._epoch:
            self._groups = self._pack_epoch(state["epoch"])
        self._epoch, self._index = state["epoch"], state["index"]

    def _pack_epoch(self, epoch: int) -> list[list[int]]:
        generator = np.random.Generator(np.random.PCG64(mix_seed(self._seed, "sft", epoch)))
        order = generator.permutation(len(self._samples))
        lengths = (len(self._samples[index].ids) for index in order)
        return [
            [int(order[place]) for place in group] for group in first_fit(lengths, self._capacity)
        ]
