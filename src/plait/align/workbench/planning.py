"""How a kind of task is written: wordings, and a function that plans one in a given office.

A family looks at an office, draws what the task is about and returns it with the steps: look-ups
included, each call using only what the query or an earlier answer tells. Every family has several
wordings; the last of them is kept for tests.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from plait.align.workbench.office import Office, Row
from plait.grade.toolcall import ToolCall


class Plan(NamedTuple):
    """What a task is about: the values for its wording, and the steps that do it."""

    values: dict[str, str]
    steps: list[ToolCall]


class Family(NamedTuple):
    """One kind of task."""

    wordings: tuple[str, ...]
    plan: Callable[[Office, random.Random], Plan]


FAMILIES: dict[str, Family] = {}


def family(*wordings: str) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """Register a planning function under its name, with its wordings."""

    def register(plan: Callable[..., Plan]) -> Callable[..., Plan]:
        FAMILIES[plan.__name__] = Family(wordings, plan)
        return plan

    return register


def call(tool: str, /, **arguments: Any) -> ToolCall:
    """Write a step."""
    return ToolCall(tool, arguments)


def pick(rng: random.Random, rows: dict[str, Row]) -> tuple[str, Row]:
    """Draw a row with its id."""
    identity = rng.choice(sorted(rows))
    return identity, rows[identity]


def first_name(address: str) -> str:
    """Return what people call the owner of an address."""
    return address.partition(".")[0].capitalize()


def find(address: str) -> ToolCall:
    """Look an address up by its owner's first name."""
    return call("company_directory_find_email_address", name=first_name(address))
