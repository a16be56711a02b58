"""Prompts to completions.

The engine owns a model, a tokenizer and one loop in which all requests run together. `submit` and
`step` drive it by hand, as a server does; `generate` and `stream` do it for the caller, who may use
them while other requests run. Prompts are texts, token ids or conversations; all become token ids
here, and nothing below knows text. An engine is for one thread at a time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from plait.core.errors import CheckpointError, RequestError
from plait.data.chat import Message
from plait.data.tokenizer import Tokenizer
from plait.engine.generation import Generation
from plait.engine.handle import Handle
from plait.engine.loop import Loop
from plait.engine.request import Completion, Delta, EngineStats, SamplingParams
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
        handles: list[Handle] = []
        try:
            for index, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
                try:
                    handles.append(
                        self.submit(prompt, own, tools=tools, enable_thinking=enable_thinking)
                    )
                except RequestError as error:
                    raise RequestError(f"prompt {index}: {error}") from None
            while not all(handle.finished for handle in handles):
                self.step()
            return [handle.completion() for handle in handles]
        finally:
            for handle in handles:
                self.cancel(handle)

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
        carries. Closing the iterator early cancels the request.
        Raises: RequestError at once, not at the first piece; CapacityError.
        """
        return self._deltas(
            self.submit(prompt, params, tools=tools, enable_thinking=enable_thinking)
        )

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> Handle:
        """Put a request in line; it runs when `step` is called.

        Raises: RequestError or CapacityError at once if it can never run.
        """
        prompt_ids = self.encode(prompt, tools=tools, enable_thinking=enable_thinking)
        generation = Generation(
            prompt_ids, params or SamplingParams(), self._vocabulary, self.max_context
        )
        self._loop.submit(generation)
        return Handle(generation)

    def step(self) -> None:
        """Advance every running request by a token and read waiting prompts.

        What goes wrong with a request ends that request (`Handle.completion` raises it), and no
        other.
        """
        self._loop.step()

    @property
    def has_work(self) -> bool:
        """True while any request waits or runs."""
        return self._loop.has_work

    def cancel(self, handle: Handle) -> None:
        """End a request and free what it holds; one that is over stays as it is."""
        self._loop.cancel(handle.generation)

    def stats(self) -> EngineStats:
        """Return what the engine does now and has done so far."""
        return self._loop.stats()

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

    def _deltas(self, handle: Handle) -> Iterator[Delta]:
        try:
            completion = None
            while completion is None:
                if not handle.finished:
                    self.step()
                delta = handle.read()
                completion = delta.completion
                if delta.reasoning or delta.content or delta.completion:
                    yield delta
        finally:
            self.cancel(handle)

    @cached_property
    def _loop(self) -> Loop:
        return Loop(
            self.model,
            self.max_num_seqs,
            self.max_context,
            self.prefill_chunk_tokens,
            len(self._vocabulary.token_bytes),
        )


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
