"""Tool-calling conversations and held-out questions from the workbench.

A training conversation is a demonstration: every call of someone who does the task right, with what
the tools answer. A held-out question is one turn of such a conversation: given everything before
it, make the right call. Whole episodes, where a model has to live with its own calls, are the
workbench's; single calls are what BFCL counts, and what the report follows in this stage.
"""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from plait.align.workbench.episode import demonstrate
from plait.align.workbench.tasks import WorkbenchSettings, make_task


class ToolCallSettings(WorkbenchSettings):
    """Which workbench tasks to demonstrate and to ask."""

    num_train: int = Field(600, gt=0)
    """Tasks demonstrated."""
    num_test: int = Field(96, gt=0)
    """Held-out tasks, each of whose calls is a question."""


def train_conversations(settings: ToolCallSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield demonstrations of training tasks: `id`, `messages`, `tools`."""
    for index in range(settings.num_train):
        yield demonstrate(make_task(settings, seed, "train", index))


def held_out_questions(settings: ToolCallSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a question per call of the test tasks: `id`, `family`, `prompt`, `tools`, `verifier`,
    `reference`."""
    for index in range(settings.num_test):
        task = make_task(settings, seed, "test", index)
        messages = demonstrate(task)["messages"]
        calls = [i for i, message in enumerate(messages) if message.get("tool_calls")]
        for number, (place, step) in enumerate(zip(calls, task.steps, strict=True)):
            yield {
                "id": f"{task.id}-call-{number}",
                "family": task.family,
                "prompt": messages[:place],
                "tools": task.tools,
                "verifier": "toolcall",
                "reference": json.dumps({"calls": [step._asdict()]}),
            }
