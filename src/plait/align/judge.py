"""Who says what an answer is worth: the verifier that its prompt names, or a reward model."""

import math
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import torch

from plait.align.reward import load_reward_model
from plait.align.rollout import Prompt
from plait.align.sampling import Judge
from plait.align.sft import sample_of
from plait.align.verify import Job, Outcome, VerifierPool
from plait.core.errors import RequestError
from plait.core.run_folder import model_directory
from plait.data.pack import Sample, pack
from plait.data.tokenizer import Tokenizer
from plait.engine.request import Completion
from plait.grade.verifiers import verifier_place
from plait.train import parallel

SCORED_AT_ONCE = 16


def judge_of(inputs: Mapping[str, Path], pool: VerifierPool) -> Judge:
    """Return the reward model that a stage was given as `reward`, else the prompts' verifiers."""
    return model_judge(inputs["reward"]) if "reward" in inputs else verifier_judge(pool)


def verifier_judge(pool: VerifierPool) -> Judge:
    """Return a judge that asks each prompt's verifier, beside whatever goes on meanwhile."""

    def judge(prompt: Prompt, completion: Completion) -> Callable[[], Outcome]:
        place = verifier_place(prompt.verifier)
        question = str(prompt.messages[-1].get("content", ""))
        return pool.begin(Job(place, question, prompt.reference, completion.content))

    return judge


def model_judge(source: Path) -> Judge:
    """Return a judge that is a reward model; it sees answers without trace, as preferences do.

    Answers are scored some at once, when the first outcome is asked for.
    """
    reward_model = load_reward_model(source, parallel.device())
    tokenizer = Tokenizer.from_directory(model_directory(source))
    waiting: dict[int, Sample] = {}
    outcomes: dict[int, Outcome] = {}
    numbers = count()

    @torch.no_grad()
    def score() -> None:
        scores: list[float] = []
        samples = list(waiting.values())
        for start in range(0, len(samples), SCORED_AT_ONCE):
            scores += reward_model(pack(samples[start : start + SCORED_AT_ONCE])).tolist()
        for number, value in zip(waiting, scores, strict=True):
            outcomes[number] = (
                Outcome(value, "reward model")
                if math.isfinite(value)
                else Outcome(None, f"the reward model gives {value}")
            )
        waiting.clear()

    def judge(prompt: Prompt, completion: Completion) -> Callable[[], Outcome]:
        number = next(numbers)
        turn = {"role": "assistant", "content": completion.content}
        try:
            waiting[number] = sample_of([*prompt.messages, turn], prompt.tools, tokenizer)
        except RequestError as error:  # the reward model's template may differ from the policy's
            outcomes[number] = Outcome(None, str(error))

        def outcome() -> Outcome:
            if number in waiting:
                score()
            return outcomes.pop(number)

        return outcome

    return judge
