"""Sampling: groups of attempts at each prompt, with tools in the loop where there are any.

    prompt | sampled turn, end of turn | response, next header | sampled turn, end of turn | ...
             learnt from                 given: weight 0         learnt from

Ids that were sampled are kept as they are; after each turn only what the template prints between it
and the next one is tokenised and appended. So the trainer sees the very tokens that the policy
chose and read, also where rendering the text anew would split it otherwise, and a thinking model
keeps its earlier traces within an episode.

All attempts run in the engine at once. One that ends a turn goes on with the next, or is handed to
its judge, while the others generate: rows stay full, and verifiers work beside the model. Attempts
at one prompt follow each other into the engine, which reads their prompt once.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch.nn.utils import parametrize

from plait.align.records import Message
from plait.align.rollout import Prompt, Rollout
from plait.align.turns import following_ids
from plait.align.verify import Outcome
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.engine.request import Completion, SamplingParams
from plait.grade.toolcall import parse_calls

UNREADABLE = "Error: the call cannot be read; write a JSON list of name and arguments"
MAX_TURNS = 8
"""Most turns of an attempt; one more than the calls an environment usually allows."""

Judge = Callable[[Prompt, Completion], Callable[[], Outcome]]
"""Begins to judge an answer, and returns what waits for the outcome."""


@runtime_checkable
class Pending(Protocol):
    """A request that runs."""

    @property
    def finished(self) -> bool:
        """True once nothing more will come."""
        ...

    def completion(self) -> Completion:
        """Return the result."""
        ...


@runtime_checkable
class Generator(Protocol):
    """What answers prompts: the engine, or anything else that gives ids and log-probabilities."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What ids mean."""
        ...

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    def submit(self, prompt: list[int], params: SamplingParams) -> Pending:
        """Put a request in line; it moves when `step` is called."""
        ...

    def step(self) -> None:
        """Advance every running request."""
        ...


class _Attempt:
    """One attempt at a prompt while it runs."""

    def __init__(
        self, prompt: Prompt, thinking: bool, prompt_ids: list[int], tokenizer: Tokenizer
    ) -> None:
        self.prompt, self.thinking, self.prompt_ids = prompt, thinking, prompt_ids
        self._tokenizer = tokenizer
        self.environment = prompt.start() if prompt.start else None
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.forced: list[bool] = []
        self.turns: list[Message] = []
        self.finish_reason = "stop"
        self.outcome: Callable[[], Outcome] | None = None

    def take(self, completion: Completion) -> list[str]:
        """Append a sampled turn, make its calls and return their answers; none ends the attempt."""
        self.token_ids += completion.token_ids
        self.logprobs += completion.logprobs or []
        self.forced += completion.forced
        self.finish_reason = completion.finish_reason
        turn: Message = {"role": "assistant", "content": completion.content}
        traced = {} if completion.reasoning is None else {"reasoning_content": completion.reasoning}
        self.turns.append({**turn, **traced})
        if self.environment is None or completion.finish_reason == "length":
            return []
        calls = parse_calls(completion.content)
        if calls is None:
            return [UNREADABLE]
        return [self.environment.call(call.name, call.arguments) for call in calls]

    def reads(self, answers: Sequence[str], room: int) -> bool:
        """Append what tools answered, tokens that the policy did not choose; False if there is
        nothing to read, or no room for it in `room` tokens."""
        if not answers:
            return False
        responses = [{"role": "tool", "content": answer} for answer in answers]
        ids = following_ids(self._tokenizer, responses, self.thinking)
        if len(self.prompt_ids) + len(self.token_ids) + len(ids) > room:
            return False
        self.turns += responses
        self.token_ids += ids
        self.logprobs += [0.0] * len(ids)
        self.forced += [True] * len(ids)
        return True

    def end(self, completion: Completion, judge: Judge) -> None:
        """Begin to judge what was done."""
        if self.environment is None:
            self.outcome = judge(self.prompt, completion)
        else:
            score = self.environment.score()
            self.outcome = lambda: Outcome(score.value, score.reason)

    def rollout(self) -> Rollout:
        """Return the finished attempt; waits for its judge."""
        assert self.outcome is not None
        value, reason = self.outcome()
        return Rollout(
            self.prompt.id,
            self.thinking,
            self.prompt_ids,
            self.token_ids,
            self.logprobs,
            self.forced,
            self.turns,
            self.finish_reason,
            value,
            reason,
        )


def sample_groups(
    engine: Generator,
    prompts: Sequence[Prompt],
    group_size: int,
    params: SamplingParams,
    thinking: Callable[[Prompt], bool],
    judge: Judge,
    seed: int,
    max_turns: int = MAX_TURNS,
) -> list[list[Rollout]]:
    """Return `group_size` judged attempts at each prompt.

    An attempt without tools is one turn. One with them ends with a turn that calls none, is cut
    off, is the last allowed, or leaves no room in the context; `params.max_tokens` holds for each
    turn. What is sampled depends on `seed`, the prompt's place and the attempt's alone.
    """
    attempts: list[_Attempt] = []
    for prompt in prompts:
        thinks = thinking(prompt)
        ids = engine.tokenizer.encode_conversation(
            prompt.messages, tools=prompt.tools, enable_thinking=thinks
        )
        attempts += [_Attempt(prompt, thinks, ids, engine.tokenizer) for _ in range(group_size)]

    def submit(place: int, turn: int) -> Pending:
        attempt = attempts[place]
        own = {"seed": mix_seed(seed, place, turn) if turn else mix_seed(seed, place)}
        each = params.model_copy(update={**own, "logprobs": True})
        return engine.submit(attempt.prompt_ids + attempt.token_ids, each)

    room = engine.max_context - (params.max_tokens or 1)
    with parametrize.cached():  # adapters are added to the weights once, not at every token
        running = {place: (0, submit(place, 0)) for place in range(len(attempts))}
        while running:
            engine.step()
            done = [place for place, (_, pending) in running.items() if pending.finished]
            for place in done:
                turn, pending = running.pop(place)
                attempt, completion = attempts[place], pending.completion()
                answers = attempt.take(completion)
                if turn + 1 < max_turns and attempt.reads(answers, room):
                    running[place] = (turn + 1, submit(place, turn + 1))
                else:
                    attempt.end(completion, judge)
    rollouts = [attempt.rollout() for attempt in attempts]
    return [rollouts[i : i + group_size] for i in range(0, len(rollouts), group_size)]


def mean_reward(groups: Sequence[Sequence[Rollout]]) -> float:
    """Return the mean reward of all attempts that could be judged; 0 if none could."""
    known = [r.reward for group in groups for r in group if r.reward is not None]
    return sum(known) / max(len(known), 1)
