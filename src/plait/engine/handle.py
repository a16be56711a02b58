"""What a caller holds of a running request: its new text and tokens, and its result."""

from plait.engine.generation import Generation
from plait.engine.request import Completion, Delta
from plait.engine.text import TextSection


class Handle:
    """One submitted request; it moves when its engine steps."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._text = SplitText(generation)
        self._num_read = 0

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids that the prompt became."""
        return self.generation.prompt_ids

    @property
    def finished(self) -> bool:
        """True once nothing more will come: finished, failed or cancelled."""
        return self.generation.is_over

    def read(self) -> Delta:
        """Return what is new since the last call: text that is certain, tokens, and at the end the
        completion.

        Raises: the request's own error if it failed.
        """
        generation = self.generation
        if generation.error is not None:
            raise generation.error
        start, self._num_read = self._num_read, len(generation.token_ids)
        params = generation.params
        return Delta(
            *self._text.read(),
            num_tokens=self._num_read,
            completion=generation.completion() if generation.is_over else None,
            token_ids=generation.token_ids[start:],
            logprobs=generation.logprobs[start:] if params.logprobs else (),
            top_logprobs=generation.top_logprobs[start:] if params.top_logprobs else (),
        )

    def completion(self) -> Completion:
        """Return the result.

        Raises: the request's own error if it failed, ValueError if it still runs.
        """
        return self.generation.completion()


class SplitText:
    """Reads trace and answer of a generation piece by piece, by offsets that `Thinking` knows."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._trace, self._trace_read = TextSection(strip=True), 0
        self._answer: TextSection | None = None
        self._answer_read = 0

    def read(self) -> tuple[str, str]:
        """Return what is new and certain of the trace and of the answer."""
        thinking = self._generation.thinking
        reasoning = content = ""
        if thinking.trace_start is not None:
            start, end = max(thinking.trace_start, self._trace_read), self._certain_trace_end()
            reasoning = self._trace.feed(bytes(thinking.output[start:end]))
            self._trace_read = max(start, end)
        if thinking.answer_start is not None:
            if self._answer is None:
                self._answer = TextSection(strip=self._generation.strips_answer)
            start = max(thinking.answer_start, self._answer_read)
            end = self._generation.certain_answer_end()
            content = self._answer.feed(bytes(thinking.output[start:end]))
            self._answer_read = max(start, end)
        return reasoning, content

    def _certain_trace_end(self) -> int:
        thinking = self._generation.thinking
        if thinking.trace_end is not None:
            return thinking.trace_end
        held = len(thinking.partial) if self._generation.finish_reason is None else 0
        return len(thinking.output) - held
