"""What a model earns on prompts that it does not learn from, with thinking on and off."""

from collections.abc import Callable, Sequence

from plait.align.rollout import AskSettings, Prompt
from plait.align.sampling import Generator, Judge, mean_reward, sample_groups
from plait.align.verify import Outcome
from plait.core.seed import mix_seed
from plait.engine.request import Completion, SamplingParams


def held_out_scores(
    engine: Generator,
    prompts: Sequence[Prompt],
    settings: AskSettings,
    judge: Judge,
    seed: int,
    *,
    gold: Judge | None = None,
    params: SamplingParams | None = None,
) -> dict[str, float]:
    """Return the means over one answer to each prompt, by way of asking: `reward.think`,
    `gold.think` if there is a second judge, `answer_tokens.think`, the same of `no_think`.

    Ways that `settings.thinking_share` leaves out are not asked.
    """
    share = settings.thinking_share
    scores: dict[str, float] = {}
    for name, asked in (("think", share > 0), ("no_think", share < 1)):
        if not asked or not prompts:
            continue
        second = _Second(judge, gold)
        groups = sample_groups(
            engine,
            prompts,
            1,
            params or settings.sampling,
            lambda _, on=name == "think": on,
            second.judge,
            mix_seed(seed, "held out"),
        )
        scores[f"reward.{name}"] = mean_reward(groups)
        if gold is not None:
            scores[f"gold.{name}"] = second.mean()
        lengths = [len(group[0].token_ids) for group in groups]
        scores[f"answer_tokens.{name}"] = sum(lengths) / len(lengths)
    return scores


def halves(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Deal prompts out to those that something is chosen by and those that are reported.

    A prompt's place depends on what it asks alone.
    """
    chosen_by = [p for p in prompts if mix_seed("choose", p.identity) % 2 == 0]
    reported = [p for p in prompts if mix_seed("choose", p.identity) % 2]
    return chosen_by, reported


class _Second:
    """A judge that lets another one judge the same answers."""

    def __init__(self, first: Judge, second: Judge | None) -> None:
        self._first, self._second = first, second
        self._outcomes: list[Callable[[], Outcome]] = []

    def judge(self, prompt: Prompt, completion: Completion) -> Callable[[], Outcome]:
        if self._second is not None:
            self._outcomes.append(self._second(prompt, completion))
        return self._first(prompt, completion)

    def mean(self) -> float:
        known = [value for value, _ in (wait() for wait in self._outcomes) if value is not None]
        return sum(known) / max(len(known), 1)
