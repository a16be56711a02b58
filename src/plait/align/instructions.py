"""Requests with verifiable instructions, for tiny models: own prompts, IFEval's checks.

    Cards: R7, B2, K9.
    Name the cards. Use no commas. End with: That is all.

The reference names IFEval's instruction ids and arguments, so the prompts are graded as IFEval's
own, none of which is used here. An answer names the cards in the form that was asked for.

Items are random access: item i of a split depends on (seed, split, i) alone. Train and test never
meet: a hash of cards and instructions says which split an item may enter.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from plait.align.chains import LETTERS
from plait.core.config import Settings, nearest
from plait.core.seed import mix_seed

Split = Literal["train", "test"]

TEST_SHARE_PERCENT = 20
WORDS = ("apple", "river", "green", "seven", "paper", "stone", "north", "music")
ENDINGS = ("That is all.", "Any questions?", "The end.", "Over to you.")


class Draft(NamedTuple):
    """An answer in the making: the cards, what stands between them, and what goes around them."""

    cards: list[str]
    separator: str = ", "
    before: str = ""
    after: str = ""
    quote: str = ""

    @property
    def text(self) -> str:
        """The answer."""
        inner = f"{self.before}{self.separator.join(self.cards)}{self.after}"
        return f"{self.quote}{inner}{self.quote}"


class Instruction(NamedTuple):
    """One kind of instruction under IFEval's id."""

    wordings: tuple[str, ...]
    arguments: Callable[[random.Random, int], dict[str, Any]]
    """Drawn for an item with so many cards."""
    apply: Callable[[Draft, dict[str, Any]], Draft]
    """Change a draft so that it follows."""


def _ending(draft: Draft, arguments: dict[str, Any]) -> Draft:
    return draft._replace(after=f"{draft.after} {arguments['end_phrase']}")


def _keyword(draft: Draft, arguments: dict[str, Any]) -> Draft:
    # In front of the cards, for a phrase may have to end the answer.
    return draft._replace(before=f"{draft.before}{arguments['keywords'][0]} ")


def _highlight(draft: Draft, arguments: dict[str, Any]) -> Draft:
    number = arguments["num_highlights"]
    marked = [f"*{card}*" if i < number else card for i, card in enumerate(draft.cards)]
    return draft._replace(cards=marked)


KINDS: dict[str, Instruction] = {
    "punctuation:no_comma": Instruction(
        ("Use no commas.", "Write without commas."),
        lambda rng, n: {},
        lambda draft, _: draft._replace(separator=" "),
    ),
    "startend:quotation": Instruction(
        ("Put the whole answer in double quotes.", "Wrap it in double quotes."),
        lambda rng, n: {},
        lambda draft, _: draft._replace(quote='"'),
    ),
    "startend:end_checker": Instruction(
        ("End with: {end_phrase}", "Your last words are: {end_phrase}"),
        lambda rng, n: {"end_phrase": rng.choice(ENDINGS)},
        _ending,
    ),
    "keywords:existence": Instruction(
        ("Use the word {keywords[0]}.", "The word {keywords[0]} must occur."),
        lambda rng, n: {"keywords": [rng.choice(WORDS)]},
        _keyword,
    ),
    "detectable_format:title": Instruction(
        ("Give it a title in << >>.", "Add a title marked << >>."),
        lambda rng, n: {},
        lambda draft, _: draft._replace(before=f"<<Cards>>\n{draft.before}"),
    ),
    "detectable_format:number_highlighted_sections": Instruction(
        ("Mark {num_highlights} cards with *.", "Highlight {num_highlights} cards like *this*."),
        lambda rng, n: {"num_highlights": rng.randint(1, n)},
        _highlight,
    ),
}


class InstructionSettings(Settings):
    """Which requests to make."""

    kinds: tuple[str, ...] = tuple(KINDS)
    """Instruction ids to draw from."""
    num_train: int = Field(400, gt=0)
    """Training items."""
    num_test: int = Field(96, gt=0)
    """Held-out items."""
    num_cards: int = Field(3, ge=1, le=len(LETTERS))
    """Cards to name in each answer."""
    max_instructions: int = Field(2, ge=1)
    """Each item has 1 to this many instructions, of different kinds."""
    care: float = Field(1.0, ge=0, le=1)
    """How often a demonstration follows an instruction. The others are overlooked, each by itself:
    a model that learns from them can do what is asked and often does not, which leaves something
    for reinforcement."""

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for name in kinds:
            if name not in KINDS:
                raise ValueError(f"unknown instruction {name!r}; {nearest(name, list(KINDS))}")
        if len(set(kinds)) != len(kinds) or not kinds:
            raise ValueError("kinds must name at least one instruction, each once")
        return kinds


class InstructionItem(NamedTuple):
    """One request."""

    cards: list[str]
    ids: list[str]
    arguments: list[dict[str, Any]]
    wordings: list[int]

    @property
    def identity(self) -> str:
        """The item without its wording: what decides the split."""
        asked = sorted(zip(self.ids, map(json.dumps, self.arguments), strict=True))
        return f"{self.cards}|{asked}"

    @property
    def question(self) -> str:
        """The user's message."""
        asked = [
            KINDS[name].wordings[wording].format(**arguments)
            for name, arguments, wording in zip(
                self.ids, self.arguments, self.wordings, strict=True
            )
        ]
        return f"Cards: {', '.join(self.cards)}.\nName the cards. {' '.join(asked)}"

    def answer(self, rng: random.Random, care: float) -> str:
        """Write an answer that follows each instruction with probability `care`."""
        draft = Draft(self.cards)
        for name, arguments in zip(self.ids, self.arguments, strict=True):
            if rng.random() < care:
                draft = KINDS[name].apply(draft, arguments)
        return draft.text


def instruction_item(
    settings: InstructionSettings, seed: int, split: Split, index: int
) -> InstructionItem:
    """Make item `index` of a split."""
    rng = random.Random(mix_seed(seed, "instructions", split, index))
    while True:
        letters = rng.sample(LETTERS, settings.num_cards)
        most = min(settings.max_instructions, len(settings.kinds))
        ids = rng.sample(settings.kinds, rng.randint(1, most))
        item = InstructionItem(
            [f"{letter}{rng.randrange(10)}" for letter in letters],
            ids,
            [KINDS[name].arguments(rng, settings.num_cards) for name in ids],
            [rng.randrange(len(KINDS[name].wordings)) for name in ids],
        )
        hashed = mix_seed("instructions", item.identity) % 100
        if ("test" if hashed < TEST_SHARE_PERCENT else "train") == split:
            return item


def train_conversations(settings: InstructionSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield training conversations, thinking off: `id`, `messages`."""
    for index in range(settings.num_train):
        item = instruction_item(settings, seed, "train", index)
        rng = random.Random(mix_seed(seed, "instructions", "demonstration", index))
        turns = (("user", item.question), ("assistant", item.answer(rng, settings.care)))
        yield {
            "id": f"instructions-train-{index}",
            "messages": [{"role": role, "content": content} for role, content in turns],
        }


def held_out_questions(settings: InstructionSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield test prompts: `id`, `family`, `prompt`, `verifier`, `reference`."""
    return _questions(settings, seed, "test", settings.num_test)


def train_questions(settings: InstructionSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the training prompts with verifier and reference instead of answers."""
    return _questions(settings, seed, "train", settings.num_train)


def _questions(
    settings: InstructionSettings, seed: int, split: Split, number: int
) -> Iterator[dict[str, Any]]:
    for index in range(number):
        item = instruction_item(settings, seed, split, index)
        yield {
            "id": f"instructions-{split}-{index}",
            "family": f"{len(item.ids)} instructions",
            "prompt": [{"role": "user", "content": item.question}],
            "verifier": "instruction",
            "reference": json.dumps({"instruction_id_list": item.ids, "kwargs": item.arguments}),
        }
