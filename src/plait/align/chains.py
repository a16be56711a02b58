"""Keyed-chain tasks: questions with a verifiable answer and an honest trace, for tiny models.

A question lists digits under letters and asks something about a chain of those letters:

    Cards: R7, B2, K9, D4.
    Last digit of the sum of D, R, B?

The trace walks the chain, one line per step, and writes each operand under its letter beside the
running value; the operand on the page is what makes the step learnable for a small model without
positions:

    D4 sum 4
    R7 sum 1
    B2 sum 3

Four families. `sum` needs the work: each step depends on the one before. `count` and `largest` can
in part be answered at a glance and `last` wholly, so they show what a thinking budget costs when
work can be skipped: a trace cut short ends at the wrong value. By default half of all questions are
sums, whose addition table takes the most examples, and none is `last`.

Items are random access: item i of a split depends on (seed, split, i) alone. Train and test never
meet, whatever the seeds: a hash of the item itself, without its wording, says which split it may
enter.
"""

import random
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from plait.core.config import Settings
from plait.core.seed import mix_seed

Family = Literal["sum", "count", "largest", "last"]
Split = Literal["train", "test"]

LETTERS = "ABCDEFGHKLMNPRST"
TEST_SHARE_PERCENT = 10
THRESHOLD = 5

PHRASINGS: dict[Family, tuple[str, ...]] = {
    "sum": ("Last digit of the sum of {chain}?", "Add {chain}. Last digit?"),
    "count": ("How many are 5 or more of {chain}?", "Count 5 or more in {chain}."),
    "largest": ("Largest of {chain}?", "Find the largest of {chain}."),
    "last": ("Which digit is last in {chain}?", "Name the last digit of {chain}."),
}


class ChainSettings(Settings):
    """Which keyed-chain items to make; lengths count the letters of a chain."""

    families: tuple[Family, ...] = ("sum", "count", "sum", "largest")
    """Taken in turns; a family named twice comes twice as often."""
    num_train: int = Field(24_000, gt=0)
    num_test: int = Field(384, gt=0)
    """Held-out items, families in turns as in training."""
    num_pairs: int = Field(6, ge=1, le=len(LETTERS))
    """Letters with a digit in each question."""
    chain_lengths: tuple[int, ...] = (2, 3, 4, 5)
    reasoning_off_share: float = Field(0.10, ge=0, le=1)
    """Share of training samples with the trace removed (report section 3.2: about 10 %)."""
    traced_families: tuple[Family, ...] = ()
    """Families whose traces are never removed as a whole; what a model answers when such a trace is
    cut short shows what cut traces have taught it, not what samples without any have."""
    truncated_share: float = Field(0.05, ge=0, le=1)
    """Share of training samples whose trace stops early while the answer stays (report section 1:
    about 5 %)."""

    @model_validator(mode="after")
    def _check(self) -> "ChainSettings":
        if not self.families:
            raise ValueError("families must name at least one")
        if not self.chain_lengths or not all(1 <= n <= self.num_pairs for n in self.chain_lengths):
            raise ValueError(
                f"chain_lengths must lie in 1..num_pairs = {self.num_pairs}, "
                f"found {self.chain_lengths}"
            )
        if self.reasoning_off_share + self.truncated_share > 1:
            raise ValueError(
                f"reasoning_off_share {self.reasoning_off_share} and truncated_share "
                f"{self.truncated_share} exceed 1 together"
            )
        return self


class ChainItem(NamedTuple):
    """One question: the digits under their letters, and the chain of letters it asks about."""

    family: Family
    digits: dict[str, int]
    chain: tuple[str, ...]
    phrasing: int

    @property
    def identity(self) -> str:
        """The item without its wording and the order of its list: what decides the split."""
        pairs = ",".join(f"{letter}{digit}" for letter, digit in sorted(self.digits.items()))
        return f"{self.family}|{pairs}|{''.join(self.chain)}"

    @property
    def question(self) -> str:
        """The user's message."""
        pairs = ", ".join(f"{letter}{digit}" for letter, digit in self.digits.items())
        wording = PHRASINGS[self.family][self.phrasing]
        return f"Cards: {pairs}.\n{wording.format(chain=', '.join(self.chain))}"

    @property
    def running(self) -> list[int]:
        """The running value after each step; the last one is the answer."""
        operands = [self.digits[letter] for letter in self.chain]
        if self.family == "sum":
            return list(accumulate(operands, lambda total, digit: (total + digit) % 10))
        if self.family == "count":
            return list(accumulate(int(digit >= THRESHOLD) for digit in operands))
        if self.family == "last":
            return operands
        return list(accumulate(operands, max))

    @property
    def trace(self) -> list[str]:
        """The lines of the reasoning: letter, operand, running value."""
        return [
            f"{letter}{self.digits[letter]} {self.family} {value}"
            for letter, value in zip(self.chain, self.running, strict=True)
        ]

    @property
    def answer(self) -> str:
        """The final message; of `last` the whole line, which names the card beside its digit."""
        return f"Answer: {self.trace[-1] if self.family == 'last' else self.running[-1]}"


def split_of(item: ChainItem) -> Split:
    """Say which split an item may enter, from the item alone."""
    return "test" if mix_seed("chains", item.identity) % 100 < TEST_SHARE_PERCENT else "train"


def chain_item(settings: ChainSettings, seed: int, split: Split, index: int) -> ChainItem:
    """Make item `index` of a split; neighbouring indices go round the families."""
    family = settings.families[index % len(settings.families)]
    rng = random.Random(mix_seed(seed, "chains", split, index))
    while True:
        letters = rng.sample(LETTERS, settings.num_pairs)
        item = ChainItem(
            family,
            {letter: rng.randrange(10) for letter in letters},
            tuple(rng.sample(letters, rng.choice(settings.chain_lengths))),
            rng.randrange(len(PHRASINGS[family])),
        )
        if split_of(item) == split:
            return item


def train_conversations(settings: ChainSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield training conversations: `id`, `family`, `messages` (with `reasoning_content`).

    A reasoning-off sample has no `reasoning_content`; a truncated one keeps the first lines of its
    trace, possibly none, and the right answer.
    """
    for index in range(settings.num_train):
        item = chain_item(settings, seed, "train", index)
        rng = random.Random(mix_seed(seed, "chains", "shape", index))
        draw = rng.random()
        assistant: dict[str, str] = {"role": "assistant", "content": item.answer}
        lines = item.trace
        if draw >= settings.reasoning_off_share or item.family in settings.traced_families:
            if 0 <= draw - settings.reasoning_off_share < settings.truncated_share:
                lines = lines[: rng.randrange(len(lines))]
            assistant["reasoning_content"] = "\n".join(lines)
        yield {
            "id": f"chains-train-{index}",
            "family": item.family,
            "messages": [{"role": "user", "content": item.question}, assistant],
        }


def held_out_questions(settings: ChainSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield test questions: `id`, `family`, `prompt` (messages), `verifier`, `reference`."""
    return _questions(settings, seed, "test", settings.num_test)


def train_questions(settings: ChainSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the training questions with verifier and reference instead of answers."""
    return _questions(settings, seed, "train", settings.num_train)


def _questions(
    settings: ChainSettings, seed: int, split: Split, number: int
) -> Iterator[dict[str, Any]]:
    for index in range(number):
        item = chain_item(settings, seed, split, index)
        yield {
            "id": f"chains-{split}-{index}",
            "family": item.family,
            "prompt": [{"role": "user", "content": item.question}],
            "verifier": "number",
            "reference": str(item.running[-1]),
        }
