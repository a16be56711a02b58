"""Tool-calling conversations and held-out questions from the workbench.

A training conversation is a demonstration: every call of someone who does the task right, with what
the tools answer. A held-out question is one turn of such a conversation: given everything before
it, make the right call. Whole episodes, where a model has to live with its own calls, are the
workbench's; single calls are what BFCL counts, and what the report follows in this stage.
"""

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import Field

from plait.align.workbench.episode import demonstrate
from plait.align.workbench.tasks import Task, WorkbenchTasks
from plait.core.seed import mix_seed


class ToolCallSettings(WorkbenchTasks):
    """Which workbench tasks to demonstrate and to ask; each call of a held-out one is a
    question."""

    closing_share: float = Field(1.0, ge=0, le=1)
    """Share of demonstrations with their last turn, which only says that all is done; the others
    end with the last call, so that most tokens are spent on calls."""
    care: float = Field(1.0, ge=0, le=1)
    """How often a demonstration names the row that is meant. The others get one digit of its id
    wrong, as people do: a model that learns from them errs at times in what it samples, seldom in
    what it finds most likely, and has own successes and failures to learn from."""


def train_conversations(settings: ToolCallSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield demonstrations of training tasks: `id`, `messages`, `tools`."""
    for index, task in enumerate(settings.tasks(seed, "train")):
        rng = random.Random(mix_seed(seed, "care", index))
        talk = demonstrate(task if rng.random() < settings.care else _mistyped(task, rng))
        closes = mix_seed(seed, "closing", index) / 2**63 < settings.closing_share
        yield talk if closes else {**talk, "messages": talk["messages"][:-2]}


def _mistyped(task: Task, rng: random.Random) -> Task:
    """Return the task with one digit of every id in its steps wrong."""
    place, shift = rng.randrange(1, 4), rng.randrange(1, 10)

    def wrong(name: str, value: Any) -> Any:
        if not name.endswith("_id"):
            return value
        digit = str((int(value[-place]) + shift) % 10)
        return value[: len(value) - place] + digit + value[len(value) - place + 1 :]

    steps = [
        step._replace(arguments={name: wrong(name, v) for name, v in step.arguments.items()})
        for step in task.steps
    ]
    return task._replace(steps=steps)


def held_out_questions(settings: ToolCallSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a question per call of the test tasks: `id`, `family`, `prompt`, `tools`, `verifier`,
    `reference`."""
    return _questions(settings.tasks(seed, "test"))


def train_questions(settings: ToolCallSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the same of the training tasks."""
    return _questions(settings.tasks(seed, "train"))


def _questions(tasks: Iterable[Task]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        messages = demonstrate(task)["messages"]
        calls = [i for i, message in enumerate(messages) if message.get("tool_calls")]
        for nth, (place, step) in enumerate(zip(calls, task.steps, strict=True)):
            yield {
                "id": f"{task.id}-call-{nth}",
                "family": task.family,
                "prompt": messages[:place],
                "tools": task.tools,
                "verifier": "toolcall",
                "reference": json.dumps({"calls": [step._asdict()]}),
            }
