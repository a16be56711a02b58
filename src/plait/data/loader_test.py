import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.core.errors import CheckpointError, ConfigError, DataError
from plait.core.seed import mix_seed
from plait.data.blend import Blend, ShardSize
from plait.data.indexed import ShardWriter
from plait.data.loader import BlendLoader, validation_batches
from plait.data.mixture import Mixture, Phase

PHASES = (
    Phase(until=0.6, weights={"a": 3, "b": 1, "c": 2}),
    Phase(until=0.9, weights={"a": 1, "b": 1}),
    Phase(until=1.0, weights={"c": 1}),
)
# Every token is different, so that nothing can be confused: category c counts from 20,000.
LENGTHS = {"a": [3, 1, 40, 7, 2, 19], "b": [5, 5], "c": [1, 64, 1, 1, 30]}


def documents_of(category, lengths=LENGTHS):
    first = {"a": 1_000, "b": 10_000, "c": 20_000}[category]
    ends = np.cumsum(lengths[category]).tolist()
    return [
        list(range(first + end - length, first + end))
        for end, length in zip(ends, lengths[category], strict=True)
    ]


def write_blend(directory, lengths=LENGTHS, max_epochs=1000.0):
    sizes = {}
    for category in lengths:
        documents = documents_of(category, lengths)
        for split in ("train", "validation"):
            with ShardWriter(directory / split / category, 30_000) as shard:
                for document in documents:
                    shard.add(document)
        num_tokens = sum(map(len, documents))
        sizes[category] = ShardSize(documents=len(documents), tokens=num_tokens, bytes=num_tokens)
    blend = Blend(
        vocab_size=30_000, phases=PHASES, max_epochs=max_epochs, train=sizes, validation=sizes
    )
    (directory / "blend.json").write_text(json.dumps(blend.model_dump()))
    np.save(directory / "token_num_bytes.npy", np.arange(30_000, dtype=np.int32) % 7)
    return directory


@pytest.fixture(scope="module")
def blend(tmp_path_factory):
    return write_blend(tmp_path_factory.mktemp("blend"))


def loader_of(directory, **changes):
    options = {"total_tokens": 16 * 45, "sequence_tokens": 16, "rows_per_batch": 3, "seed": 5}
    return BlendLoader(directory, **{**options, **changes})


def same(left, right):
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def expected_rows(total_rows, row_tokens, seed):
    """Build all rows the slow way: whole tapes first, then cut."""
    mixture = Mixture(PHASES, total_rows)
    tapes = {}
    for category in LENGTHS:
        documents = documents_of(category)
        tape = []
        for epoch in range(60):
            generator = np.random.Generator(
                np.random.PCG64(mix_seed(seed, "blend", category, epoch))
            )
            for index in generator.permutation(len(documents)).tolist():
                document = documents[index]
                targets = [*document[1:], None]
                tape += [
                    (token, target, (epoch, index))
                    for token, target in zip(document, targets, strict=True)
                ]
        tapes[category] = tape
    rows = []
    for row in range(total_rows):
        category, rank = mixture.draw(row)
        rows.append(tapes[category][rank * row_tokens : (rank + 1) * row_tokens])
    return rows


@pytest.mark.parametrize("row_tokens", [1, 16, 37])
def test_batches_are_the_cut_tapes(blend, row_tokens):
    loader = loader_of(blend, total_tokens=45 * row_tokens, sequence_tokens=row_tokens)
    batches = list(loader)
    rows = expected_rows(45, row_tokens, seed=5)
    assert len(batches) == loader.num_batches == 15
    for step, batch in enumerate(batches):
        entries = [entry for row in rows[3 * step : 3 * step + 3] for entry in row]
        tokens, targets, weights = (row[0].tolist() for row in batch[:3])
        assert tokens == [token for token, _, _ in entries]
        for target, weight, (_, wanted, _) in zip(targets, weights, entries, strict=True):
            assert weight == (wanted is not None)
            assert wanted is None or target == wanted
        # A boundary where the document changes and at every row, and nowhere else.
        owners = [(i // row_tokens, owner) for i, (_, _, owner) in enumerate(entries)]
        changes = [i for i in range(1, len(owners)) if owners[i] != owners[i - 1]]
        assert batch.cu_seqlens.tolist() == [0, *changes, len(owners)]
        assert batch.tokens.shape == (1, 3 * row_tokens)


def test_every_phase_keeps_its_proportions_to_one_sequence(blend):
    """Counted from the tokens that come out, not from the plan."""
    num_rows, row_tokens = 3 * 67, 16
    loader = loader_of(blend, total_tokens=num_rows * row_tokens, sequence_tokens=row_tokens)
    rows = torch.cat([batch.tokens[0] for batch in loader]).reshape(num_rows, row_tokens)
    first = {"a": 1_000, "b": 10_000, "c": 20_000}
    start = 0
    for phase in PHASES:
        end = round(Fraction(phase.until) * num_rows)
        drawn = rows[start:end, 0]
        for name, begin in first.items():
            count = ((drawn >= begin) & (drawn < begin + 1_000)).sum().item()
            share = Fraction(phase.weights.get(name, 0)) / Fraction(sum(phase.weights.values()))
            assert abs(count - share * (end - start)) < 1
        start = end
    assert start == num_rows


def test_dtypes(blend):
    batch = next(loader_of(blend))
    assert [t.dtype for t in batch] == [torch.int64, torch.int64, torch.float32, torch.int32]


def test_every_token_appears_once_an_epoch(blend):
    loader = loader_of(blend, total_tokens=16 * 300)
    tokens = torch.cat([batch.tokens[0] for batch in loader]).tolist()
    for category, epochs in loader.epochs().items():
        for document in documents_of(category):
            for token in document:
                assert tokens.count(token) in (math.floor(epochs), math.ceil(epochs))


def test_epochs_differ_in_order_and_seeds_too(blend):
    def order(seed):
        loader = loader_of(blend, seed=seed, total_tokens=16 * 300)
        return torch.cat([batch.tokens[0] for batch in loader]).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


@settings(max_examples=15, deadline=None)
@given(stop=st.integers(0, 15), wasted=st.integers(0, 15))
def test_resume_is_bit_for_bit_at_any_step(blend, stop, wasted):
    whole = list(loader_of(blend))
    first = loader_of(blend)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.state()))
    second = loader_of(blend)
    for _ in range(wasted):
        next(second)
    second.load_state(state)
    rest = list(second)
    assert len(rest) == len(whole) - stop
    assert all(same(*pair) for pair in zip(rest, whole[stop:], strict=True))


@pytest.mark.parametrize("world", [1, 3])
def test_ranks_share_each_batch(blend, world):
    whole = list(loader_of(blend))
    shards = [
        list(loader_of(blend, rows_per_batch=3 // world, rank=rank, world=world))
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        tokens = torch.cat([shard[step].tokens for shard in shards], dim=1)
        assert torch.equal(tokens, batch.tokens)


def test_resume_with_another_number_of_ranks(blend):
    first = loader_of(blend, rows_per_batch=3)
    next(first)
    second = loader_of(blend, rows_per_batch=1)
    second.load_state(first.state())
    assert torch.equal(next(second).tokens, next(first).tokens[:, :16])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "seed = 5, this run has 6"),
        ({"sequence_tokens": 15}, "sequence_tokens = 16, this run has 15"),
        ({"total_tokens": 16 * 48}, "total_rows = 45, this run has 48"),
    ],
)
def test_resume_in_another_order_is_refused(blend, changes, message):
    state = loader_of(blend).state()
    with pytest.raises(CheckpointError, match=message):
        loader_of(blend, **changes).load_state(state)


def test_the_run_is_rounded_up_to_whole_batches(blend):
    loader = loader_of(blend, total_tokens=16 * 43 + 1)
    assert loader.num_batches == 15
    assert sum(batch.tokens.numel() for batch in loader) == 16 * 45


def test_too_many_epochs_get_the_arithmetic(tmp_path):
    directory = write_blend(tmp_path, max_epochs=4.0)
    with pytest.raises(ConfigError, match=r"'a': training draws 336 .* 72 there are, 4\.7 epochs"):
        loader_of(directory)


def test_epochs_are_tokens_drawn_over_tokens_there_are(blend):
    loader = loader_of(blend)
    epochs = loader.epochs()
    tokens = torch.cat([batch.tokens[0] for batch in loader])
    for category in LENGTHS:
        there = torch.tensor([token for document in documents_of(category) for token in document])
        drawn = torch.isin(tokens, there).sum().item()
        assert epochs[category] == drawn / len(there)


@pytest.mark.parametrize("tokens_per_batch", [1, 10, 16, 1_000])
@pytest.mark.parametrize("category", LENGTHS)
def test_validation_scores_every_token_but_the_first_of_each_document(
    blend, category, tokens_per_batch
):
    documents = documents_of(category)
    tokens, scored, num_bytes = [], [], 0
    for batch, size in validation_batches(blend, category, tokens_per_batch):
        assert batch.tokens.shape[1] <= tokens_per_batch
        tokens += batch.tokens[0].tolist()
        scored += batch.targets[batch.weights > 0].tolist()
        num_bytes += size
    assert tokens == [token for document in documents for token in document]
    assert scored == [token for document in documents for token in document[1:]]
    assert num_bytes == sum(token % 7 for token in scored)


def test_validation_without_text_is_named(tmp_path):
    directory = write_blend(tmp_path)
    with ShardWriter(directory / "validation" / "a", 30_000):
        pass
    with pytest.raises(DataError, match="no validation text"):
        next(validation_batches(directory, "a", 10))
    with pytest.raises(DataError, match=r"nowhere\.idx: missing"):
        next(validation_batches(directory, "nowhere", 10))
