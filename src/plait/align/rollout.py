"""Rollouts: prompts, how answers to them are sampled, and what an answer was and earned.

Answers are drawn at temperature 1 with nothing filtered, so that the engine's log-probabilities are
those of the policy that is trained. Trainer and engine share the weights and the forward; how far
their log-probabilities still differ is measured on every step (see `grpo_stage`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

from plait.align.generated import GeneratedTasks
from plait.align.records import Message
from plait.align.workbench.tasks import WorkbenchTasks
from plait.core.artifact import json_bytes, write_atomic
from plait.core.errors import DataError
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.grade.score import Score
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

PositiveInt = Annotated[int, Field(gt=0)]


class Room(NamedTuple):
    """Most tokens of a prompt with all that follows it, and of a prompt."""

    context_tokens: int
    prompt_tokens: int


class AskSettings(GeneratedTasks):
    """What is asked besides the user's files, and how answers are generated and judged."""

    workbench: WorkbenchTasks | None = None
    """Tasks that are done by calling tools, turn by turn, and succeed by what has changed in the
    end."""
    max_prompt_tokens: PositiveInt = 2048
    """Longer prompts are refused."""
    max_tokens: PositiveInt = 512
    """Longest answer, trace included; with tools, of each turn."""
    max_context: PositiveInt | None = None
    """Room for a prompt and all that follows it; None is max_prompt_tokens + max_tokens, which
    leaves little for what tools answer."""
    thinking_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of prompts asked with thinking on; which ones changes from round to round."""
    max_thinking_tokens: int | None = None
    """Thinking budget; tokens it forces are not learnt from."""
    verify_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Longest a verifier may take for one answer."""
    verify_workers: PositiveInt = 1
    """Processes that verify."""
    max_num_seqs: PositiveInt = 64
    """Answers generated at once."""

    @property
    def generates(self) -> bool:
        """True if any prompts are generated."""
        return super().generates or self.workbench is not None

    @property
    def sampling(self) -> SamplingParams:
        """How answers are drawn: from the policy as it is, nothing filtered."""
        return SamplingParams(
            max_tokens=self.max_tokens, max_thinking_tokens=self.max_thinking_tokens
        )

    def engine(self, model: HybridLM, tokenizer: Tokenizer) -> Engine:
        """Return an engine that shares the model's weights and has room for these answers."""
        max_context = self.room(model.spec).context_tokens
        return Engine(model, tokenizer, max_num_seqs=self.max_num_seqs, max_context=max_context)

    def room(self, spec: ModelSpec) -> "Room":
        """Return what fits into a model's context."""
        wanted = self.max_context or self.max_prompt_tokens + self.max_tokens
        context = min(wanted, spec.max_position_embeddings)
        return Room(context, min(self.max_prompt_tokens, context - 1))

    def thinks(self, seed: int, prompt: "Prompt") -> bool:
        """Say whether a prompt is asked with thinking on, in the round of this seed."""
        return mix_seed(seed, "thinking", prompt.identity) / 2**63 < self.thinking_share


class RolloutSettings(AskSettings):
    """How groups of answers are sampled."""

    group_size: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt."""


@runtime_checkable
class Environment(Protocol):
    """What an attempt acts on through tools."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Make a call and return its answer; mistakes of the caller are answers too."""
        ...

    def score(self) -> Score:
        """Say what the attempt is worth as things stand now."""
        ...


class Prompt(NamedTuple):
    """A question whose answers can be rewarded."""

    id: str
    messages: list[Message]
    tools: Any
    verifier: str
    """Name of the grader; "" where a reward model or an environment judges."""
    reference: str
    start: Callable[[], Environment] | None = None
    """Begins what the tools act on afresh; None for a question that one turn answers."""

    @property
    def identity(self) -> str:
        """What is asked, wherever its file lies: what choices by seed depend on."""
        return json.dumps(self.messages)


class Rollout(NamedTuple):
    """One sampled answer."""

    prompt: str
    """Id of the prompt."""
    thinking: bool
    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    """Of the policy that sampled; 0 for forced tokens."""
    forced: list[bool]
    """Tokens that the policy did not choose, so nothing is learnt from them: those that the
    thinking budget fed, and the responses of tools."""
    turns: list[Message]
    """What was said, as messages: turns of the assistant and what tools answered."""
    finish_reason: str
    """Of the last turn."""
    reward: float | None
    """None if it could not be judged."""
    reason: str


def write_groups(file: Path, groups: Sequence[Sequence[Rollout]]) -> None:
    """Write rollouts as JSONL, one a line with the number of its group."""
    lines = [
        json.dumps({"group": number, **rollout._asdict()}, ensure_ascii=False) + "\n"
        for number, group in enumerate(groups)
        for rollout in group
    ]
    write_atomic(file, json_bytes("".join(lines)))


def read_groups(file: Path) -> list[list[Rollout]]:
    """Read what `write_groups` wrote.

    Raises: DataError naming the file if it cannot be read.
    """
    groups: list[list[Rollout]] = []
    try:
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            record = json.loads(line)
            while len(groups) <= record["group"]:
                groups.append([])
            groups[record["group"]].append(Rollout(**{f: record[f] for f in Rollout._fields}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: rollouts to resume from cannot be read: {error!r}") from None
    return groups
