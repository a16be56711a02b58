"""Who says what an answer is worth: the verifier that its prompt names, or a reward model."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from plait.align.reward import load_reward_model
from plait.align.rollout import Asked, Judge
from plait.align.sft import sample_of
from plait.align.verify import Job, Outcome, VerifierPool
from plait.core.run_folder import model_directory
from plait.data.pack import pack
from plait.data.tokenizer import Tokenizer
from plait.grade.verifiers import verifier_place
from plait.train import parallel

SCORED_AT_ONCE = 16


def judge_of(inputs: Mapping[str, Path], pool: VerifierPool) -> Judge:
    """Return the reward model that a stage was given as `reward`, else the prompts' verifiers."""
    return model_judge(inputs["reward"]) if "reward" in inputs else verifier_judge(pool)


def verifier_judge(pool: VerifierPool) -> Judge:
    """Return a judge that asks each prompt's verifier."""

    def judge(asked: Sequence[Asked]) -> list[Outcome]:
        return pool.grade(
            [
                Job(
                    verifier_place(prompt.verifier),
                    str(prompt.messages[-1].get("content", "")),
                    prompt.reference,
                    completion.content,
                )
                for prompt, completion in asked
            ]
        )

    return judge


def model_judge(source: Path) -> Judge:
    """Return a judge that is a reward model; it sees answers without trace, as preferences do."""
    reward_model = load_reward_model(source, parallel.device())
    tokenizer = Tokenizer.from_directory(model_directory(source))

    @torch.no_grad()
    def judge(asked: Sequence[Asked]) -> list[Outcome]:
        samples = []
        for prompt, completion in asked:
            turn = {"role": "assistant", "content": completion.content}
            samples.append(sample_of([*prompt.messages, turn], prompt.tools, tokenizer))
        scores: list[float] = []
        for start in range(0, len(samples), SCORED_AT_ONCE):
            scores += reward_model(pack(samples[start : start + SCORED_AT_ONCE])).tolist()
        return [
            Outcome(score, "reward model")
            if math.isfinite(score)
            else Outcome(None, f"the reward model gives {score}")
            for score in scores
        ]

    return judge
