"""Prompts to completions.

The engine owns a model and a tokenizer; each call of `generate` or `stream` runs a loop of its own,
whose state is as large as the call needs and is gone afterwards. So an exception, or a stream that
nobody reads to its end, leaves nothing behind. Prompts are texts, token ids or conversations; all
become token ids here, and nothing below knows text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plait.core.errors import CheckpointError, RequestError
from plait.data.chat import Message
from plait.data.tokenizer import Tokenizer
from plait.engine.generation import Generation, SplitText
from plait.engine.loop import Loop
from plait.engine.request import Completion, Delta, SamplingParams
from plait.engine.vocabulary import Vocabulary
from plait.model.lm import HybridLM

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, in which special-token strings count; token ids; or a conversation for the chat
template."""


class Engine:
    """Batched generation with a thinking budget.

    max_num_seqs: rows that run at once. max_context: tokens of prompt and output together; None is
    the model's own limit. prefill_chunk_tokens: prompt tokens read in one forward. end_ids: tokens
    that end an output besides the tokenizer's ends of turn and text.
    Raises: CheckpointError if the tokenizer has more ids than the model.
    """

    def __init__(
        self,
        model: HybridLM,
        tokenizer: Tokenizer,
        *,
        max_num_seqs: int = 32,
        max_context: int | None = None,
        prefill_chunk_tokens: int = 2048,
        end_ids: Sequence[int] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_num_seqs = max_num_seqs
        self.max_context = (
            model.spec.max_position_embeddings if max_context is None else max_context
        )
        self.prefill_chunk_tokens = prefill_chunk_tokens
        for name in ("max_num_seqs", "max_context", "prefill_chunk_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; allowed: 1 or more")
        self._vocabulary = Vocabulary(tokenizer, end_ids)
        num_ids = len(self._vocabulary.token_bytes)
        if num_ids > model.spec.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {num_ids} ids, the model {model.spec.vocab_size}: they do not "
                "belong together"
            )

    @classmethod
    def from_path(
        cls,
        directory: Path | str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        max_num_seqs: int = 32,
        max_context: int | None = None,
    ) -> "Engine":
        """Load a Hugging Face directory, or hub id, with its tokenizer.

        dtype: None keeps that of the files.
        Raises: CheckpointError or DataError naming the file that is missing or wrong.
        """
        from plait.model.hf import load, local_directory

        directory = local_directory(directory)
        return cls(
            load(directory, dtype=dtype, device=device),
            Tokenizer.from_directory(directory),
            max_num_seqs=max_num_seqs,
            max_context=max_context,
            end_ids=_end_ids(directory),
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> list[Completion]:
        """Return a completion per prompt, in their order; `params` is one for all or one per
        prompt.

        tools and enable_thinking go to the chat template of every conversation.
        Raises: RequestError naming the prompt, before anything is generated; CapacityError.
        """
        if isinstance(prompts, str):
            raise RequestError("prompts is one text; put it in a list: generate([text])")
        if isinstance(params, Sequence) and len(params) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts but {len(params)} sampling parameters")
        each = params if isinstance(params, Sequence) else [params] * len(prompts)
        generations = []
        for index, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            try:
                generations.append(self._start(prompt, own, tools, enable_thinking))
            except RequestError as error:
                raise RequestError(f"prompt {index}: {error}") from None
        loop = self._loop(len(prompts))
        for generation in generations:
            loop.submit(generation)
        while loop.has_work:
            loop.step()
        return [generation.completion() for generation in generations]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> Iterator[Delta]:
        """Return an iterator over the text of one completion as it grows.

        The pieces, joined, equal `reasoning` and `content` of the completion that the last one
        carries.
        Raises: RequestError at once, not at the first piece; CapacityError.
        """
        generation = self._start(prompt, params, tools, enable_thinking)
        return _deltas(generation, self._loop(1))

    def encode(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> list[int]:
        """Return the token ids that a prompt stands for.

        Raises: RequestError if it is none of the three kinds, or the template refuses it.
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        items = list(prompt) if isinstance(prompt, Sequence) else []
        ids = [item for item in items if isinstance(item, int)]
        messages = [item for item in items if isinstance(item, Mapping)]
        if messages and len(messages) == len(items):
            return self.tokenizer.encode_conversation(
                messages, tools=tools, enable_thinking=enable_thinking
            )
        if len(ids) < len(items) or not isinstance(prompt, Sequence):
            raise RequestError(
                "a prompt is a text, a list of token ids or a list of messages "
                f'({{"role": ..., "content": ...}}); found {str(prompt)[:80]}'
            )
        return ids

    def _start(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        tools: Sequence[Mapping[str, Any]] | None,
        enable_thinking: bool | None,
    ) -> Generation:
        prompt_ids = self.encode(prompt, tools=tools, enable_thinking=enable_thinking)
        return Generation(
            prompt_ids, params or SamplingParams(), self._vocabulary, self.max_context
        )

    def _loop(self, num_requests: int) -> Loop:
        return Loop(
            self.model,
            min(self.max_num_seqs, num_requests),
            self.max_context,
            self.prefill_chunk_tokens,
            len(self._vocabulary.token_bytes),
        )


def _deltas(generation: Generation, loop: Loop) -> Iterator[Delta]:
    loop.submit(generation)
    text = SplitText(generation)
    if loop.has_work:
        loop.step()
    while generation.finish_reason is None:
        reasoning, content = text.read()
        if reasoning or content:
            yield Delta(reasoning, content, len(generation.token_ids))
        loop.step()
    yield Delta(*text.read(), len(generation.token_ids), generation.completion())


def _end_ids(directory: Path) -> list[int]:
    """Return the end tokens that generation_config.json names."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return []
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a JSON object: {error}") from None
    return [value] if isinstance(value, int) else list(value or [])
