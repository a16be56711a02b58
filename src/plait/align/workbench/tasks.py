"""Workbench tasks by seed: an office, a query in plain words, the calls that do it.

Items are random access: item i of a split depends on (settings, seed, split, i) alone. Train and
test never meet, whatever the seeds: a hash of what the task is about (its family and the values in
its query) says which split it may enter, and the last wording of each family is met in tests only.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from plait.align.workbench.families import FAMILIES
from plait.align.workbench.generate import OfficeSettings, make_office
from plait.align.workbench.office import TODAY, Office
from plait.align.workbench.tools import TOOLS
from plait.core.config import Settings, nearest
from plait.core.seed import mix_seed
from plait.grade.toolcall import ToolCall

Split = Literal["train", "test"]

TEST_SHARE_PERCENT = 20


class WorkbenchSettings(Settings):
    """Which workbench tasks to make."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """Kinds of task, taken in turns."""
    office: OfficeSettings = OfficeSettings()
    num_distractors: int = Field(3, ge=0, le=len(TOOLS))
    """Tools shown beside those that a task needs; the largest number shows all."""
    all_wordings: bool = False
    """Let training tasks use the wording that each family otherwise keeps for tests: for
    reinforcement, which meets what no demonstration shows. What tasks are about stays apart."""
    brief: bool = False
    """Declare tools by names and types alone, without descriptions and allowed values."""

    @field_validator("families")
    @classmethod
    def _known(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        if not families:
            raise ValueError("families must name at least one")
        for name in families:
            if name not in FAMILIES:
                raise ValueError(f"unknown family {name!r}; {nearest(name, list(FAMILIES))}")
        return families


class Task(NamedTuple):
    """One task; `office` is its start and must be copied before it is worked on."""

    id: str
    family: str
    query: str
    office: Office
    steps: list[ToolCall]
    """All calls of someone who does it right, look-ups included."""
    tool_names: list[str]
    """The tools that are shown."""
    brief: bool
    """How they are declared."""
    identity: str
    """What it is about, without its wording: decides the split."""

    @property
    def gold(self) -> list[ToolCall]:
        """The steps that change the office."""
        return [step for step in self.steps if TOOLS[step.name].changes]

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        """The conversation so far: what day it is, and the query."""
        return [
            {"role": "system", "content": f"Today is {TODAY}. Work with the tools."},
            {"role": "user", "content": self.query},
        ]

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The declarations of the tools that are shown, in OpenAI's form."""
        shown = [TOOLS[name] for name in self.tool_names]
        return [tool.brief if self.brief else tool.schema for tool in shown]


def split_of(identity: str) -> Split:
    """Say which split a task may enter, from what it is about alone."""
    return "test" if mix_seed("workbench", identity) % 100 < TEST_SHARE_PERCENT else "train"


def make_task(settings: WorkbenchSettings, seed: int, split: Split, index: int) -> Task:
    """Make task `index` of a split; neighbouring indices go round the families."""
    name = settings.families[index % len(settings.families)]
    family = FAMILIES[name]
    rng = random.Random(mix_seed(seed, "workbench", split, index))
    while True:
        office = make_office(settings.office, rng.randrange(1 << 62))
        plan = family.plan(office, rng)
        about = ",".join(f"{key}={value}" for key, value in sorted(plan.values.items()))
        identity = f"{name}|{about}"
        if split_of(identity) == split:
            break
    *common, kept = family.wordings
    meets_kept = split == "test" or settings.all_wordings
    wording = kept if meets_kept and rng.random() < 0.5 else rng.choice(common)
    needed = dict.fromkeys(step.name for step in plan.steps)
    others = [tool for tool in TOOLS if tool not in needed]
    shown = [*needed, *rng.sample(others, min(settings.num_distractors, len(others)))]
    rng.shuffle(shown)
    return Task(
        f"workbench-{split}-{index}",
        name,
        wording.format(**plan.values),
        office,
        plan.steps,
        shown,
        settings.brief,
        identity,
    )


class WorkbenchTasks(WorkbenchSettings):
    """How many tasks of each split to make."""

    num_train: int = Field(600, gt=0)
    """Tasks to learn from."""
    num_test: int = Field(96, ge=0)
    """Held-out tasks."""

    def tasks(self, seed: int, split: Split) -> Iterator[Task]:
        """Yield the tasks of a split."""
        for index in range(self.num_train if split == "train" else self.num_test):
            yield make_task(self, seed, split, index)
