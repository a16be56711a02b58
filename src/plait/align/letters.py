"""Short letters to ask for: a chat domain for tiny models, in which some replies are better.

    Tell Anna that the lamp is late.          Hello Anna. The lamp is late. Thank you.

Demonstrations are as people's are, some good and some careless: each part of a letter is right with
a probability of its own. So a fine-tuned model writes letters of every quality, and preferences
between two of them say which is better by `grade.reply`, the gold rule that stands for people. A
reward model sees only the preferences.

Items are random access, and a hash of what is asked says which split an item may enter, so train
and test never meet.
"""

import json
import random
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import Field

from plait.core.config import Settings
from plait.core.errors import ConfigError
from plait.core.seed import mix_seed
from plait.grade.reply import CLOSES, GREETINGS, grade_reply

Split = Literal["train", "test"]

TEST_SHARE_PERCENT = 20
NAMES = ("Anna", "Omar", "Lena", "Raj", "Yuki", "Carlos", "Nia", "Tariq", "Sofia", "Mateo", "Hana")
THINGS = ("lamp", "boat", "cake", "door", "book", "coat", "ring", "desk", "song", "tree", "bell")
ACTS = (
    (
        ("Tell {name} that the {thing} is late.", "Write to {name}: the {thing} is late."),
        "The {thing} is late.",
    ),
    (
        ("Tell {name} that the {thing} is ready.", "Write to {name}: the {thing} is ready."),
        "The {thing} is ready.",
    ),
    (
        ("Ask {name} about the {thing}.", "Write to {name} and ask about the {thing}."),
        "How is the {thing}?",
    ),
    (
        ("Offer {name} the {thing}.", "Write to {name} and offer the {thing}."),
        "Do you want the {thing}?",
    ),
)


class LetterSettings(Settings):
    """Which letters to ask for."""

    num_train: int = Field(600, gt=0)
    """Training items."""
    num_test: int = Field(96, ge=0)
    """Held-out items."""
    care: float = Field(0.6, ge=0, le=1)
    """How often each part of a demonstrated letter is right."""
    thinking_share: float = Field(0.5, ge=0, le=1)
    """Share of demonstrations with a trace."""


class LetterItem(NamedTuple):
    """One request for a letter."""

    act: int
    wording: int
    name: str
    thing: str

    @property
    def identity(self) -> str:
        """The item without its wording: what decides the split."""
        return f"{self.act}|{self.name}|{self.thing}"

    @property
    def question(self) -> str:
        """The user's message."""
        return ACTS[self.act][0][self.wording].format(name=self.name, thing=self.thing)

    @property
    def trace(self) -> str:
        """What to think of before writing."""
        return f"to {self.name}\nabout the {self.thing}"

    @property
    def reference(self) -> str:
        """What `grade.reply` needs."""
        return json.dumps({"name": self.name, "thing": self.thing})

    def letter(self, rng: random.Random, care: float) -> str:
        """Write a letter each part of which is right with probability `care`."""
        thing = self.thing if rng.random() < care else rng.choice(THINGS)
        body = ACTS[self.act][1].format(thing=thing)
        greeting = f"{rng.choice(GREETINGS)} {self.name}."
        if rng.random() >= care:
            greeting = rng.choice(("", "Hey.", f"{rng.choice(GREETINGS)} {rng.choice(NAMES)}."))
        close = rng.choice(CLOSES) if rng.random() < care else rng.choice(("", "Bye."))
        times = 1 if rng.random() < care else rng.randint(2, 3)
        return " ".join(part for part in (greeting, *[body] * times, close) if part)


def letter_item(seed: int, split: Split, index: int) -> LetterItem:
    """Make item `index` of a split."""
    rng = random.Random(mix_seed(seed, "letters", split, index))
    while True:
        act = rng.randrange(len(ACTS))
        wording = rng.randrange(len(ACTS[act][0]))
        item = LetterItem(act, wording, rng.choice(NAMES), rng.choice(THINGS))
        hashed = mix_seed("letters", item.identity) % 100
        if ("test" if hashed < TEST_SHARE_PERCENT else "train") == split:
            return item


def train_conversations(settings: LetterSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield demonstrations, good and careless: `id`, `messages`."""
    for index in range(settings.num_train):
        item = letter_item(seed, "train", index)
        rng = random.Random(mix_seed(seed, "letters", "demonstration", index))
        assistant = {"role": "assistant", "content": item.letter(rng, settings.care)}
        if rng.random() < settings.thinking_share:
            assistant["reasoning_content"] = item.trace
        yield {
            "id": f"letters-train-{index}",
            "messages": [{"role": "user", "content": item.question}, assistant],
        }


def preferences(settings: LetterSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield preferences between two letters of different worth: `id, prompt, chosen, rejected`.

    Raises: ConfigError if all letters would be equally good.
    """
    if settings.care == 1:
        raise ConfigError(
            "letters.care = 1 makes all letters equally good, so none is preferred; give less"
        )
    for index in range(settings.num_train):
        item = letter_item(seed, "train", index)
        rng = random.Random(mix_seed(seed, "letters", "preference", index))
        worth: dict[float, str] = {}
        while len(worth) < 2:
            letter = item.letter(rng, settings.care)
            worth[grade_reply("", item.reference, letter).value] = letter
        yield {
            "id": f"letters-preference-{index}",
            "prompt": item.question,
            "chosen": worth[max(worth)],
            "rejected": worth[min(worth)],
        }


def held_out_questions(settings: LetterSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield test prompts: `id`, `family`, `prompt`, `verifier`, `reference`."""
    return _questions(seed, "test", settings.num_test)


def train_questions(settings: LetterSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the training prompts with verifier and reference instead of letters."""
    return _questions(seed, "train", settings.num_train)


def _questions(seed: int, split: Split, number: int) -> Iterator[dict[str, Any]]:
    for index in range(number):
        item = letter_item(seed, split, index)
        yield {
            "id": f"letters-{split}-{index}",
            "family": "letters",
            "prompt": [{"role": "user", "content": item.question}],
            "verifier": "reply",
            "reference": item.reference,
        }
