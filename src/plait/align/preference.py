"""Pairs of answers to batches, and log-probabilities of whole answers.

A preference becomes two samples that share their prompt, rendered and tokenised as attempts are
sampled (see `turns`): every turn of an answer is learnt, what tools responded is not. A batch packs
both sides of some pairs into one row: documents 2n and 2n + 1 are chosen and rejected of pair n,
and nothing passes between them.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.align.batches import EpochBatches
from plait.align.records import Message, Record, Refusals, preference_sides
from plait.align.turns import attempt_sample
from plait.core.errors import DataError, RequestError
from plait.core.progress import track
from plait.data.loader import PackedBatch
from plait.data.pack import Sample, pack
from plait.data.tokenizer import Tokenizer
from plait.kernels.token_logprobs import token_logprobs
from plait.model.lm import HybridLM


class Pair(NamedTuple):
    """Both sides of a preference."""

    chosen: Sample
    rejected: Sample
    prompt_ids: Sequence[int]
    """What was asked, as with thinking off: equal for all pairs of one prompt."""

    @property
    def num_tokens(self) -> int:
        """Tokens of both sides, prompts included."""
        return len(self.chosen.ids) + len(self.rejected.ids)


class PairSet(NamedTuple):
    """Pairs of a data set, and how many were too long to be used."""

    pairs: list[Pair]
    num_too_long: int


class PairBatch(NamedTuple):
    """Some pairs in one row, and what the reference model says of their sides."""

    packed: PackedBatch
    reference: Float[Tensor, "N 2"] | None
    """Log-probabilities of chosen and rejected answers; None where none are needed."""


def build_pairs(
    records: Iterable[Record], tokenizer: Tokenizer, max_tokens: int, refusals: Refusals
) -> PairSet:
    """Tokenise preferences; pairs of more than `max_tokens` tokens are counted and left out.

    Raises: DataError for a row that cannot be used, unless `refusals` collects it, or if none can.
    """
    pairs: list[Pair] = []
    num_too_long = 0
    for record in track(list(records), "preferences", unit="pairs"):
        with refusals.row():
            pair = pair_of(record, tokenizer)
            if pair.num_tokens > max_tokens:
                num_too_long += 1
            else:
                pairs.append(pair)
    if not pairs:
        raise DataError(
            f"no preference can be learnt from: {num_too_long} pairs exceed tokens_per_batch = "
            f"{max_tokens}, {refusals.summary}"
        )
    return PairSet(pairs, num_too_long)


def pair_of(record: Record, tokenizer: Tokenizer) -> Pair:
    """Return the samples of a preference.

    Raises: DataError naming the record if it is incomplete, its sides are equal or the template
    refuses it.
    """
    prompt, chosen, rejected = preference_sides(record)

    def side(answer: Sequence[Message]) -> Sample:
        return attempt_sample(prompt, answer, record.get("tools"), tokenizer)

    try:
        asked = tokenizer.encode_conversation(
            prompt, tools=record.get("tools"), enable_thinking=False
        )
        pair = Pair(side(chosen), side(rejected), asked)
    except RequestError as error:
        raise DataError(f"{record.get('id', 'a record')}: {error}") from None
    if list(pair.chosen.ids) == list(pair.rejected.ids):
        raise DataError(
            f"{record.get('id', 'a record')}: chosen and rejected are the same once rendered"
        )
    return pair


class PairBatches(EpochBatches):
    """Endless batches of whole pairs."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokens_per_batch: int,
        seed: int,
        reference: Float[Tensor, "N 2"] | None = None,
    ) -> None:
        def collate(group: list[int]) -> PairBatch:
            known = None if reference is None else reference[group]
            return PairBatch(pack_pairs([pairs[index] for index in group]), known)

        super().__init__([pair.num_tokens for pair in pairs], tokens_per_batch, seed, collate)


def pack_pairs(pairs: Sequence[Pair]) -> PackedBatch:
    """Put both sides of pairs one after another into one row."""
    return pack([side for pair in pairs for side in (pair.chosen, pair.rejected)])


class AnswerLogprobs(NamedTuple):
    """Log-probabilities of the tokens that carry weight in a packed row."""

    logprobs: Float[Tensor, " T"]
    documents: Int[Tensor, " T"]
    """Which document each token belongs to."""
    num_documents: int

    @property
    def sums(self) -> Float[Tensor, " S"]:
        """Sum over each document's tokens."""
        return self.logprobs.new_zeros(self.num_documents).index_add(
            0, self.documents, self.logprobs
        )

    @property
    def counts(self) -> Float[Tensor, " S"]:
        """Number of each document's tokens."""
        ones = torch.ones_like(self.logprobs)
        return ones.new_zeros(self.num_documents).index_add(0, self.documents, ones)


def answer_logprobs(model: HybridLM, batch: PackedBatch) -> AnswerLogprobs:
    """Return the log-probabilities of the tokens of a packed row whose weight is not 0, in nats."""
    tokens, targets, weights, cu_seqlens = (x.to(model.lm_head.weight.device) for x in batch)
    hidden = model.hidden(tokens, cu_seqlens=cu_seqlens)[0]
    kept = weights[0].nonzero()[:, 0]
    logprobs = token_logprobs(hidden[kept], model.lm_head.weight, targets[0, kept])
    documents = torch.bucketize(kept, cu_seqlens[1:].long(), right=True)
    return AnswerLogprobs(logprobs, documents, len(cu_seqlens) - 1)


@torch.no_grad()
def reference_logprobs(
    model: HybridLM, pairs: Sequence[Pair], tokens_per_batch: int
) -> Float[Tensor, "N 2"]:
    """Return the summed log-probabilities of all chosen and rejected answers, on the CPU."""
    result = torch.empty(len(pairs), 2)
    batches: Any = EpochBatches([p.num_tokens for p in pairs], tokens_per_batch, 0, lambda g: g)
    for _ in track(range(batches.num_batches), "reference", unit="batches"):
        group = next(batches)
        packed = pack_pairs([pairs[index] for index in group])
        result[group] = answer_logprobs(model, packed).sums.view(-1, 2).float().cpu()
    return result
