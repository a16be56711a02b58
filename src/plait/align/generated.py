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
        return any((self.chains, self.instructions, self.tool_calls, self.letters))

    def train_conversations(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield training conversations of every task, one task after another."""
        if self.chains is not None:
            yield from chains.train_conversations(self.chains, seed)
        if self.instructions is not None:
            yield from instructions.train_conversations(self.instructions, seed)
        if self.tool_calls is not None:
            yield from tool_calls.train_conversations(self.tool_calls, seed)
        if self.letters is not None:
            yield from letters.train_conversations(self.letters, seed)

    def train_questions(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield the training questions of every task, with verifier and reference."""
        if self.chains is not None:
            yield from chains.train_questions(self.chains, seed)
        if self.instructions is not None:
            yield from instructions.train_questions(self.instructions, seed)
        if self.tool_calls is not None:
            yield from tool_calls.train_questions(self.tool_calls, seed)
        if self.letters is not None:
            yield from letters.train_questions(self.letters, seed)

    def held_out_questions(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield the test questions of every task, with verifier and reference."""
        if self.chains is not None:
            yield from chains.held_out_questions(self.chains, seed)
        if self.instructions is not None:
            yield from instructions.held_out_questions(self.instructions, seed)
        if self.tool_calls is not None:
            yield from tool_calls.held_out_questions(self.tool_calls, seed)
        if self.letters is not None:
            yield from letters.held_out_questions(self.letters, seed)
