"""Tasks that plait makes itself, with answers that can be checked: what tiny recipes learn from."""

from collections.abc import Iterator
from typing import Any

from plait.align import chains, instructions, letters, tool_calls
from plait.align.chains import ChainSettings
from plait.align.instructions import InstructionSettings
from plait.align.letters import LetterSettings
from plait.align.tool_calls import ToolCallSettings
from plait.core.config import Settings


class GeneratedTasks(Settings):
    """Which generated tasks a stage takes, besides the user's files."""

    chains: ChainSettings | None = None
    """Keyed chains: reasoning with a trace."""
    instructions: InstructionSettings | None = None
    """Requests with verifiable instructions."""
    tool_calls: ToolCallSettings | None = None
    """Calls of the workbench's tools."""
    letters: LetterSettings | None = None
    """Short letters, some better than others."""

    @property
    def generates(self) -> bool:
        """True if any are asked for."""
        return bool(self._chosen())

    def train_conversations(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield training conversations of every task, one task after another."""
        for task, settings in self._chosen():
            yield from task.train_conversations(settings, seed)

    def train_questions(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield the training questions of every task, with verifier and reference."""
        for task, settings in self._chosen():
            yield from task.train_questions(settings, seed)

    def held_out_questions(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield the test questions of every task, with verifier and reference."""
        for task, settings in self._chosen():
            yield from task.held_out_questions(settings, seed)

    def _chosen(self) -> list[tuple[Any, Settings]]:
        """Return the module of each task that is asked for, and its settings."""
        known = [
            (chains, self.chains),
            (instructions, self.instructions),
            (tool_calls, self.tool_calls),
            (letters, self.letters),
        ]
        return [(task, settings) for task, settings in known if settings is not None]
