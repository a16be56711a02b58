"""Rollouts that call tools: sampled turns and the tools' responses in one sequence.

    prompt | sampled turn, end of turn | response, next header | sampled turn, end of turn | ...
             learnt from                 given: weight 0         learnt from

Ids that were sampled are kept as they are; after each turn only what the template prints between it
and the next one is tokenised and appended. So the trainer sees the very tokens that the policy
chose and read, also where rendering the text anew would split it otherwise, and a thinking model
keeps its earlier traces within an episode.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch.nn.utils import parametrize

from plait.align.rollout import Generator, Prompt, Rollout
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.engine.request import Completion, SamplingParams
from plait.grade.score import Score
from plait.grade.toolcall import parse_calls

UNREADABLE = "Error: the call cannot be read; write a JSON list of name and arguments"


class Environment(Protocol):
    """What an episode acts on."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Make a call and return its answer; mistakes of the caller are answers too."""
        ...

    def score(self) -> Score:
        """Say what the episode is worth as things stand now."""
        ...


class ToolPrompt(NamedTuple):
    """A task and how to begin it afresh."""

    prompt: Prompt
    start: Callable[[], Environment]


class _Episode:
    """One attempt while it runs."""

    def __init__(self, task: ToolPrompt, thinking: bool, tokenizer: Tokenizer) -> None:
        self.prompt, self.thinking = task.prompt, thinking
        self.environment = task.start()
        self.prompt_ids = tokenizer.encode_conversation(
            task.prompt.messages, tools=task.prompt.tools, enable_thinking=thinking
        )
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.forced: list[bool] = []
        self.last: Completion | None = None

    def take(self, completion: Completion) -> list[str]:
        """Append a sampled turn, make its calls and return their answers; none ends the episode."""
        self.last = completion
        self.token_ids += completion.token_ids
        self.logprobs += completion.logprobs or []
        self.forced += completion.forced
        calls = parse_calls(completion.content)
        if completion.finish_reason == "length":
            return []
        if calls is None:
            return [UNREADABLE]
        return [self.environment.call(call.name, call.arguments) for call in calls]

    def read(self, ids: list[int]) -> None:
        """Append tokens that the policy did not choose."""
        self.token_ids += ids
        self.logprobs += [0.0] * len(ids)
        self.forced += [True] * len(ids)

    def rollout(self) -> Rollout:
        """Return the finished attempt."""
        assert self.last is not None
        score, last = self.environment.score(), self.last
        return Rollout(
            self.prompt.id,
            self.thinking,
            self.prompt_ids,
            self.token_ids,
            self.logprobs,
            self.forced,
            last.reasoning,
            last.content,
            last.finish_reason,
            score.value,
            score.reason,
        )


def response_ids(tokenizer: Tokenizer, answers: Sequence[str], thinking: bool) -> list[int]:
    """Return what the template prints after an assistant's turn that tools have answered."""
    turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "-"}]
    turns += [{"role": "tool", "content": answer} for answer in answers]
    ids = tokenizer.encode_conversation(turns, enable_thinking=thinking)
    end = len(ids) - ids[::-1].index(tokenizer.end_of_turn_id)
    return ids[end:]


def tool_groups(
    engine: Generator,
    tasks: Sequence[ToolPrompt],
    group_size: int,
    params: SamplingParams,
    thinking: Callable[[Prompt], bool],
    seed: int,
    max_turns: int = 8,
) -> list[list[Rollout]]:
    """Return `group_size` attempts at each task, scored by their environments.

    All attempts take their turns together, so the engine's rows stay full. An attempt ends with a
    turn that calls no tool, is cut off, is the last allowed, or leaves no room in the context;
    `params.max_tokens` holds for each turn.
    """
    episodes = [
        _Episode(task, thinking(task.prompt), engine.tokenizer)
        for task in tasks
        for _ in range(group_size)
    ]
    active = list(enumerate(episodes))
    for turn in range(max_turns):
        each = [
            params.model_copy(update={"seed": mix_seed(seed, place, turn), "logprobs": True})
            for place, _ in active
        ]
        inputs = [episode.prompt_ids + episode.token_ids for _, episode in active]
        with parametrize.cached():
            completions = engine.generate(inputs, each)
        going_on = []
        for (place, episode), completion in zip(active, completions, strict=True):
            answers = episode.take(completion)
            if not answers or turn == max_turns - 1:
                continue
            response = response_ids(engine.tokenizer, answers, episode.thinking)
            length = len(episode.prompt_ids) + len(episode.token_ids) + len(response)
            if length + (params.max_tokens or 1) <= engine.max_context:
                episode.read(response)
                going_on.append((place, episode))
        active = going_on
        if not active:
            break
    rollouts = [episode.rollout() for episode in episodes]
    return [rollouts[i : i + group_size] for i in range(0, len(rollouts), group_size)]
