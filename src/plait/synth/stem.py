"""STEM questions grown from seeds in three rounds, answered, in part made multiple choice.

Source: the report (section 2.2.2): 88.6k seed questions; rounds ask for questions that are
similar, harder and varied; near-duplicates go; the answers come from models that think; a part is
rewritten in the style of MMLU (four options) and MMLU-Pro (ten).
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

from pydantic import BaseModel, Field

from plait.core.errors import ConfigError
from plait.core.seed import mix_seed
from plait.synth.choice import Choice, as_question, check_choice
from plait.synth.client import Unusable
from plait.synth.distinct import Distinct
from plait.synth.pipeline import Pipeline
from plait.synth.prompts import render
from plait.synth.rows import Question, Seed, first, read_rows
from plait.synth.sample import Sample, question_and_answer
from plait.synth.settings import PositiveInt, Share, Sources, SynthSettings

Variation = Literal["similar", "harder", "varied"]


class StemSettings(SynthSettings):
    """Settings of the generator `stem`; files hold seeds with a `question`."""

    roles = ("writer", "solver", "rewriter")

    rounds: tuple[tuple[Variation, ...], ...] = (("similar",), ("harder",), ("varied",))
    """What each round asks for, of every question that there is by then. One kind a round is our
    reading of the report."""
    questions_per_call: PositiveInt = 1
    """Questions that one call writes. Our choice."""
    max_question_tokens: PositiveInt = 1024
    max_answer_tokens: PositiveInt = 16_384
    """Of reasoning and answer together."""
    choice_share: Share = 0.2
    """Share of questions that are rewritten as multiple choice. Our choice."""
    option_counts: tuple[PositiveInt, ...] = (4, 10)
    """Numbers of options, by turns: MMLU has four, MMLU-Pro ten."""


class Questions(BaseModel):
    """What a model hands in."""

    questions: list[str] = Field(min_length=1)


async def generate(settings: StemSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Grow questions from seeds, then answer those that are new."""
    if not settings.files:
        raise ConfigError("files: the generator stem starts from seed questions; name JSONL files")
    known = Distinct()
    pool: list[Question] = []
    for seed in first(settings, read_rows(settings.files_read(), Seed)):
        is_new = known.add(seed.question)
        pipeline.account("seeds", seed, None if is_new else "duplicate_seed")
        if is_new:
            pool.append(Question(seed.id, seed.question))
    num_seeds = len(pool)
    for number, variations in enumerate(settings.rounds, 1):
        grown = []
        for variation in variations:
            work = partial(_vary, settings, pipeline, number, variation)
            step = f"round {number}, {variation}"
            async for _, written in pipeline.each(step, pool, work):
                grown += _new(written, known, pipeline)
        pool += grown
    new = pool[num_seeds:]
    await pipeline.run("answers", new, partial(_answer, settings, pipeline))
    part = [q for q in new if mix_seed(settings.seed, q.id) < settings.choice_share * 2**63]
    await pipeline.run("multiple choice", part, partial(_as_choice, settings, pipeline))


async def _vary(
    settings: StemSettings,
    pipeline: Pipeline,
    number: int,
    variation: Variation,
    seed: Question,
) -> list[Question]:
    """Return new questions made from one in round `number`."""
    count = settings.questions_per_call
    prompt = render(f"stem_{variation}", question=seed.question, count=count)
    filled = await pipeline.roles["writer"].fill(
        prompt, Questions, max_tokens=settings.max_question_tokens * count, sample=number
    )
    texts = [text.strip() for text in filled.questions[:count] if text.strip()]
    if not texts:
        raise Unusable("no_question")
    return [Question(f"{seed.id}/{number}{variation}{i}", text) for i, text in enumerate(texts)]


def _new(written: Sequence[Question], known: Distinct, pipeline: Pipeline) -> Iterable[Question]:
    for question in written:
        if known.add(question.question):
            yield question
        else:
            pipeline.parts["duplicate_question"] += 1


async def _answer(settings: StemSettings, pipeline: Pipeline, question: Question) -> list[Sample]:
    prompt = render("stem_answer", question=question.question)
    reply = await pipeline.roles["solver"].think(prompt, max_tokens=settings.max_answer_tokens)
    sample = question_and_answer(
        question.id, question.question, reply.text, reply.reasoning, {"form": "free"}
    )
    return [sample]


async def _as_choice(
    settings: StemSettings, pipeline: Pipeline, question: Question
) -> list[Sample]:
    counts = settings.option_counts
    count = counts[mix_seed(settings.seed, "options", question.id) % len(counts)]
    prompt = render("stem_choice", question=question.question, count=count)
    filled = await pipeline.roles["rewriter"].fill(
        prompt,
        Choice,
        max_tokens=settings.max_question_tokens,
        check=partial(check_choice, num_options=count, answered=False),
    )
    text = as_question(filled.question, filled.options)
    asked = render("stem_answer_choice", question=text)
    reply = await pipeline.roles["solver"].think(asked, max_tokens=settings.max_answer_tokens)
    metadata = {"form": f"choice of {count}"}
    return [
        question_and_answer(f"{question.id}/choice", text, reply.text, reply.reasoning, metadata)
    ]
