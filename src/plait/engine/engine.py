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
from plait.engine.memory_plan import plan_for_model
from plait.engine.request import Completion, Delta, EngineStats, Grammar, SamplingParams
from plait.engine.vocabulary import Vocabulary
from plait.model.lm import HybridLM

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, in which special-token strings count; token ids; or a conversation for the chat
template."""


class Engine:
    """Batched generation with a thinking budget.

    memory_bytes: what the weights, the pools and all else may take together; None is what the
    device has free. max_num_seqs: requests that run at once; None is up to 32, as many as fit.
    max_context: tokens of prompt and output together; None is the model's own limit, or what fits.
    prefill_chunk_tokens: prompt tokens read between two tokens of the running answers; None is 512
    on a CPU and 2048 elsewhere. prefix_cache: reuse what prompts have in common. state_dtype: of
    the SSM states; None is float32 (float64 for a float64 model). end_ids: tokens that end an
    output besides the tokenizer's ends of turn and text.

    Pools are allocated at the first request. A model whose parameters are changed in place between
    requests is noticed, unless it is by `.data` or a fused optimizer of torch's: call `reset` then.
    Raises: CheckpointError if the tokenizer has more ids than the model, CapacityError with the
    arithmetic if what is asked for does not fit.
    """

    def __init__(
        self,
        model: HybridLM,
        tokenizer: Tokenizer,
        *,
        memory_bytes: int | None = None,
        max_num_seqs: int | None = None,
        max_context: int | None = None,
        prefill_chunk_tokens: int | None = None,
        prefix_cache: bool = True,
        state_dtype: torch.dtype | None = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        if prefill_chunk_tokens is None:
            on_cpu = model.backbone.embeddings.weight.device.type == "cpu"
            prefill_chunk_tokens = 512 if on_cpu else 2048
        sizes = {
            "memory_bytes": memory_bytes,
            "max_num_seqs": max_num_seqs,
            "max_context": max_context,
            "prefill_chunk_tokens": prefill_chunk_tokens,
        }
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}; allowed: 1 or more")
        self.model = model
        self.tokenizer = tokenizer
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.state_dtype = state_dtype
        self._vocabulary = Vocabulary(tokenizer, end_ids)
        num_ids = len(self._vocabulary.token_bytes)
        if num_ids > model.spec.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {num_ids} ids, the model {model.spec.vocab_size}: they do not "
                "belong together"
            )
        self.memory_plan = plan_for_model(
            model,
            memory_bytes,
            state_dtype=state_dtype,
            max_num_seqs=max_num_seqs,
            max_context=max_context,
            prefix_cache=prefix_cache,
            prefill_tokens=prefill_chunk_tokens,
        )
        self.max_context = self.memory_plan.max_context
        self._weights_version = 0

    @classmethod
    def from_path(
        cls,
        directory: Path | str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> "Engine":
        """Load a Hugging Face directory, or hub id, with its tokenizer.

        dtype: None keeps that of the files. options: those of `Engine`, except end_ids.
        Raises: CheckpointError or DataError naming the file that is missing or wrong;
        CapacityError.
        """
        from plait.model.hf import load, local_directory

        directory = local_directory(directory)
        return cls(
            load(directory, dtype=dtype, device=device),
            Tokenizer.from_directory(directory),
            end_ids=_end_ids(directory),
            **options,
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
        deltas = self._deltas(
            self.submit(prompt, params, tools=tools, enable_thinking=enable_thinking)
        )
        next(deltas)  # a generator that never began would not cancel the request when closed
        return deltas

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
        if not self.has_work:
            self._forget_old_weights()
        self._loop.submit(generation)
        return Handle(generation)

    def compile(self, grammar: Grammar) -> None:
        """Compile a grammar; a request that asks for it then finds it ready.

        May be called in another thread than `step`: a large one takes a second.
        Raises: RequestError as `submit` does.
        """
        self._vocabulary.grammars.matcher(grammar)

    def reset(self) -> None:
        """Give the pools back and forget stored prefixes; the next request makes new ones.

        Raises: ValueError if requests still run.
        """
        if self.has_work:
            raise ValueError("requests still run: cancel them first")
        self.__dict__.pop("_loop", None)

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
            yield handle.read()  # nothing yet; `stream` takes it
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
            self.memory_plan,
            self.prefill_chunk_tokens,
            len(self._vocabulary.token_bytes),
            self.state_dtype,
        )

    def _forget_old_weights(self) -> None:
        """Drop stored prefixes if the parameters were changed since the last request."""
        version = sum(parameter._version for parameter in self.model.parameters())
        if version != self._weights_version:
            self._loop.prefix.clear()
            self._weights_version = version


def _end_ids(directory: Path) -> list[int]:
    """Return the end tokens that generation_config.json names."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return []
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a JSON object: {error}") from None
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id_) is int for id_ in ids):
        raise CheckpointError(f"{file}: eos_token_id is {value!r}; allowed: an id or a list of ids")
    return ids
