"""Fundamental reasoning: new multiple-choice items from seeds, answered by majority vote.

Source: the report (section 2.2.2): seeds of the kind of LSAT, LogiQA and AQuA-RAT; a model writes
new items; chains of thought are drawn several times and the answer that most of them reach is
taken. The number of chains and the share that must agree are not published: our choice.
"""

import re
from collections import Counter
from functools import partial
from typing import NamedTuple

from plait.core.errors import ConfigError
from plait.synth.choice import LETTERS, Choice, as_question, check_choice
from plait.synth.client import Unusable
from plait.synth.distinct import Distinct
from plait.synth.pipeline import Pipeline, together
from plait.synth.prompts import render
from plait.synth.rows import Question, Seed, first, read_rows
from plait.synth.sample import Sample, question_and_answer
from plait.synth.settings import PositiveInt, Share, Sources, SynthSettings

# A small letter may be the article: "the answer is a triangle".
_VOTE = re.compile(r"(?i:answer is):?\s*\W{0,3}\(?([A-J])\b")


class ReasoningSettings(SynthSettings):
    """Settings of the generator `reasoning`; files hold seeds with `question` and `options`."""

    roles = ("writer", "voter")

    items_per_seed: PositiveInt = 1
    """New items made of each seed. Our choice."""
    num_votes: PositiveInt = 8
    min_agreement: Share = 0.5
    """Share of all votes, given or not, that must name the answer; more than that is needed."""
    max_item_tokens: PositiveInt = 1536
    max_answer_tokens: PositiveInt = 4096


class Item(NamedTuple):
    """A new question with its lettered options."""

    id: str
    question: str
    num_options: int


async def generate(settings: ReasoningSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Write items from seeds and vote on their answers."""
    if not settings.files:
        raise ConfigError("files: the generator reasoning starts from seeds; name JSONL files")
    known = Distinct()
    seeds = list(first(settings, read_rows(settings.files_read(), Seed)))
    for seed in seeds:
        known.add(seed.question)
    asked = [
        Question(f"{seed.id}/{number}", as_question(seed.question, seed.options))
        for seed in seeds
        for number in range(settings.items_per_seed)
    ]
    items: list[Item] = []
    step = "new items"
    async for seed, item in pipeline.each(step, asked, partial(_write, settings, pipeline)):
        if known.add(item.question):
            items.append(item)
        else:
            pipeline.drop(step, seed, "duplicate_question")
    await pipeline.run("votes", items, partial(_vote, settings, pipeline))


async def _write(settings: ReasoningSettings, pipeline: Pipeline, seed: Question) -> Item:
    prompt = render("reasoning_item", question=seed.question, number=seed.id.rpartition("/")[2])
    filled = await pipeline.roles["writer"].fill(
        prompt,
        Choice,
        max_tokens=settings.max_item_tokens,
        check=partial(check_choice, answered=False),
    )
    return Item(seed.id, as_question(filled.question, filled.options), len(filled.options))


async def _vote(settings: ReasoningSettings, pipeline: Pipeline, item: Item) -> list[Sample]:
    prompt = render("reasoning_vote", question=item.question)
    allowed = LETTERS[: item.num_options]

    async def chain(number: int) -> tuple[str, str] | None:
        check = partial(_named_option, allowed)
        try:
            return await pipeline.roles["voter"].write(
                prompt, max_tokens=settings.max_answer_tokens, check=check, sample=number
            )
        except Unusable as failure:
            if failure.reason == "over_budget":
                raise
            pipeline.parts[f"vote_{failure.reason}"] += 1
            return None

    votes = [vote for vote in await together(map(chain, range(settings.num_votes))) if vote]
    counts = Counter(letter for letter, _ in votes)
    [(winner, count)] = counts.most_common(1) or [("", 0)]
    if count <= settings.min_agreement * settings.num_votes:
        raise Unusable("no_majority", str(dict(counts)))
    thought = next(text for letter, text in votes if letter == winner)
    metadata = {"agreement": count / settings.num_votes}
    return [question_and_answer(item.id, item.question, thought, None, metadata)]


def _named_option(allowed: str, text: str) -> tuple[str, str]:
    """Return the option that a chain of thought ends with, and the chain."""
    found = _VOTE.findall(text)
    if not found or found[-1] not in allowed:
        raise Unusable("names_no_option")
    return found[-1], text
