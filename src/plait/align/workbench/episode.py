"""One attempt at a task: calls in, texts out, success or not at the end.

    episode = Episode(task.office, task.gold)
    for name, arguments in parse_calls(answer) or []:
        response = episode.call(name, arguments)
    episode.score()

Success is the right final state, however it was reached: the office must be as after the gold calls
on a fresh copy. A change too many is a failure, a look-up too many is not, unless there are more
calls than allowed. Source: WorkBench, arXiv 2405.00823.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from plait.align.workbench.office import Office
from plait.align.workbench.tasks import Task
from plait.align.workbench.tools import call_tool
from plait.grade.score import Score
from plait.grade.toolcall import ToolCall

MAX_CALLS = 6


class Episode:
    """An office being worked on; the office given is not touched."""

    def __init__(self, office: Office, gold: Iterable[ToolCall], max_calls: int = MAX_CALLS):
        self.office = office.copy()
        self.num_calls = 0
        self._max_calls = max_calls
        self._expected = office.copy()
        for name, arguments in gold:
            call_tool(self._expected, name, arguments)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Make a call and return its answer, or text that begins with "Error:"; never raises."""
        self.num_calls += 1
        if self.num_calls > self._max_calls:
            return f"Error: no more calls; {self._max_calls} are allowed"
        return call_tool(self.office, name, arguments)

    def score(self) -> Score:
        """Score 1 if the office is as it should be now, else 0 with what differs."""
        if self.num_calls > self._max_calls:
            return Score(0.0, f"more than {self._max_calls} calls")
        differences = self.office.differences(self._expected)
        if differences:
            tables = ", ".join(f"{name} ({count})" for name, count in differences)
            return Score(0.0, f"wrong rows in {tables}")
        return Score(1.0, "correct")


def demonstrate(task: Task) -> dict[str, Any]:
    """Return a conversation that does a task right, a call a turn: `id`, `messages`, `tools`."""
    episode = Episode(task.office, task.gold)
    messages = task.messages
    for name, arguments in task.steps:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "content": episode.call(name, arguments)})
    messages.append({"role": "assistant", "content": "Done."})
    return {"id": task.id, "messages": messages, "tools": task.tools}
