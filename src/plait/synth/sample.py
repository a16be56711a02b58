"""What generators write: documents for pretraining, conversations for fine-tuning, or both.

    documents/{train,validation}/<category>.jsonl   text, id, metadata: what a blend reads
    conversations.jsonl                             messages, tools, id, metadata: what `sft` reads
    dropped.jsonl                                   step, id, reason, detail

All of them appear together, whole, when the last item is done.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from plait.core.artifact import atomic_file
from plait.core.seed import mix_seed

CONVERSATIONS_FILE = "conversations.jsonl"
DROPPED_FILE = "dropped.jsonl"


class Sample(NamedTuple):
    """One thing written: a text, a conversation, or one thing in both forms."""

    id: str
    text: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    metadata: Mapping[str, Any] = {}


def question_and_answer(
    id: str, question: str, answer: str, reasoning: str | None, metadata: Mapping[str, Any]
) -> Sample:
    """Return a question with its answer as text and as conversation."""
    turn = {"role": "assistant", "content": answer}
    if reasoning:
        turn["reasoning_content"] = reasoning
    parts = [question, reasoning, answer] if reasoning else [question, answer]
    messages = [{"role": "user", "content": question}, turn]
    return Sample(id, "\n\n".join(parts), messages, metadata=metadata)


class SampleWriter:
    """Writes samples and drops under `out`; files take their names when the block ends well."""

    def __init__(self, out: Path, category: str, validation_share: float, seed: int) -> None:
        self.out, self.category = out, category
        self.validation_share, self.seed = validation_share, seed
        self.num_documents = self.num_conversations = self.num_bytes = 0
        self._stack = ExitStack()
        self._files: dict[str, IO[str]] = {}

    def __enter__(self) -> "SampleWriter":
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, sample: Sample) -> None:
        """Write a sample in the forms that it has."""
        facts = {"id": sample.id, "metadata": dict(sample.metadata)}
        if sample.text:
            place = mix_seed(self.seed, "validation", sample.id) / 2**63
            split = "validation" if place < self.validation_share else "train"
            name = f"documents/{split}/{self.category}.jsonl"
            self._write(name, {"text": sample.text, **facts})
            self.num_documents += 1
            self.num_bytes += len(sample.text.encode())
        if sample.messages:
            talk: dict[str, Any] = {"messages": list(sample.messages)}
            if sample.tools:
                talk["tools"] = list(sample.tools)
            self._write(CONVERSATIONS_FILE, {**talk, **facts})
            self.num_conversations += 1

    def drop(self, step: str, id: str, reason: str, detail: str) -> None:
        """Note an item that came to nothing."""
        row = {"step": step, "id": id, "reason": reason, "detail": detail}
        self._write(DROPPED_FILE, row)

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._files:
            path = self._stack.enter_context(atomic_file(self.out / name))
            self._files[name] = self._stack.enter_context(
                path.open("w", encoding="utf-8", errors="backslashreplace")  # as `json_bytes`
            )
        self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
