"""Rollouts: groups of sampled answers to one prompt, with what sampled them and what they earned.

Answers are drawn at temperature 1 with nothing filtered, so that the engine's log-probabilities are
those of the policy that is trained. Trainer and engine share the weights and the forward; how far
their log-probabilities still differ is measured on every step (see `grpo_stage`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

from pydantic import Field
from torch.nn.utils import parametrize

from plait.align.generated import GeneratedTasks
from plait.align.records import Message, Record, Refusals, prompt_messages
from plait.align.verify import Outcome
from plait.core.artifact import write_atomic
from plait.core.errors import DataError, RequestError
from plait.core.progress import track
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.engine.request import Completion, SamplingParams
from plait.grade.verifiers import verifier_place
from plait.model.lm import HybridLM

PositiveInt = Annotated[int, Field(gt=0)]


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

    def generate(
        self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]
    ) -> list[Completion]:
        """Return a completion per prompt, in their order."""
        ...


class RolloutSettings(GeneratedTasks):
    """What is asked besides the user's files, and how answers are sampled and judged."""

    group_size: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt."""
    max_prompt_tokens: PositiveInt = 2048
    """Longer prompts are refused."""
    max_tokens: PositiveInt = 512
    """Longest answer, trace included."""
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
    def sampling(self) -> SamplingParams:
        """How answers are drawn: from the policy as it is, nothing filtered."""
        return SamplingParams(
            max_tokens=self.max_tokens, max_thinking_tokens=self.max_thinking_tokens
        )

    def engine(self, model: HybridLM, tokenizer: Tokenizer) -> Engine:
        """Return an engine that shares the model's weights and has room for these answers."""
        room = self.max_prompt_tokens + self.max_tokens
        max_context = min(room, model.spec.max_position_embeddings)
        return Engine(model, tokenizer, max_num_seqs=self.max_num_seqs, max_context=max_context)

    def thinks(self, seed: int, prompt: "Prompt") -> bool:
        """Say whether a prompt is asked with thinking on, in the round of this seed."""
        return mix_seed(seed, "thinking", prompt.identity) / 2**63 < self.thinking_share


class Prompt(NamedTuple):
    """A question whose answers can be rewarded."""

    id: str
    messages: list[Message]
    tools: Any
    verifier: str
    """Name of the grader; "" where a reward model judges."""
    reference: str

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
    reasoning: str | None
    content: str
    finish_reason: str
    reward: float | None
    """None if it could not be judged."""
    reason: str


Asked = tuple[Prompt, Completion]
Judge = Callable[[Sequence[Asked]], list[Outcome]]
"""Rewards of some answers, in their order."""


def build_prompts(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    max_tokens: int,
    refusals: Refusals,
    verified: bool = True,
) -> list[Prompt]:
    """Read prompts (`prompt, verifier, reference`) and check that each can be asked.

    Without `verified` a reward model judges, and neither verifier nor reference is needed.
    Raises: DataError for a row that cannot be used, unless `refusals` collects it, or if none can.
    """
    prompts: list[Prompt] = []
    for record in track(list(records), "prompts", unit="prompts"):
        with refusals.row():
            prompts.append(_prompt(record, tokenizer, max_tokens, verified))
    if not prompts:
        raise DataError(f"no prompt to learn from; {len(refusals.reasons)} rows refused")
    return prompts


def _prompt(record: Record, tokenizer: Tokenizer, max_tokens: int, verified: bool) -> Prompt:
    name = str(record.get("id", "a record"))
    messages = prompt_messages(record)
    verifier, reference = str(record.get("verifier", "")), record.get("reference", "")
    if verified:
        try:
            verifier_place(verifier)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
    if verified and not isinstance(reference, str):
        reference = json.dumps(reference)
    tools = record.get("tools")
    try:
        num_tokens = len(tokenizer.encode_conversation(messages, tools=tools))
    except RequestError as error:
        raise DataError(f"{name}: {error}") from None
    if num_tokens > max_tokens:
        raise DataError(f"{name}: the prompt has {num_tokens} tokens, more than {max_tokens}")
    return Prompt(name, messages, tools, verifier, str(reference))


def sample_groups(
    engine: Generator,
    prompts: Sequence[Prompt],
    group_size: int,
    params: SamplingParams,
    thinking: Callable[[Prompt], bool],
    judge: Judge,
    seed: int,
) -> list[list[Rollout]]:
    """Return `group_size` judged answers to each prompt.

    All are generated in one call, so the engine's rows stay full; the seed of an answer depends on
    `seed`, the prompt's place and the answer's alone.
    """
    asked = [(prompt, thinking(prompt)) for prompt in prompts for _ in range(group_size)]
    ids = {
        place: engine.tokenizer.encode_conversation(
            prompt.messages, tools=prompt.tools, enable_thinking=thinks
        )
        for place, (prompt, thinks) in enumerate(asked)
        if place % group_size == 0
    }
    each = [
        params.model_copy(update={"seed": mix_seed(seed, place), "logprobs": True})
        for place in range(len(asked))
    ]
    inputs = [ids[place - place % group_size] for place in range(len(asked))]
    with parametrize.cached():  # adapters are added to the weights once, not at every token
        completions = engine.generate(inputs, each)
    outcomes = judge([(prompt, c) for (prompt, _), c in zip(asked, completions, strict=True)])
    rollouts = [
        _rollout(prompt, thinks, completion, outcome)
        for (prompt, thinks), completion, outcome in zip(asked, completions, outcomes, strict=True)
    ]
    return [rollouts[i : i + group_size] for i in range(0, len(rollouts), group_size)]


def _rollout(prompt: Prompt, thinks: bool, completion: Completion, outcome: Outcome) -> Rollout:
    return Rollout(
        prompt.id,
        thinks,
        completion.prompt_ids,
        completion.token_ids,
        completion.logprobs or [],
        completion.forced,
        completion.reasoning,
        completion.content,
        completion.finish_reason,
        outcome.value,
        outcome.reason,
    )


def write_groups(file: Path, groups: Sequence[Sequence[Rollout]]) -> None:
    """Write rollouts as JSONL, one a line with the number of its group."""
    lines = [
        json.dumps({"group": number, **rollout._asdict()}, ensure_ascii=False) + "\n"
        for number, group in enumerate(groups)
        for rollout in group
    ]
    write_atomic(file, "".join(lines))


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
