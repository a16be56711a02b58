import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels.chunk_layout import chunk_layout, take
from plait.kernels.documents import Documents


@pytest.mark.parametrize("bounds", [[1, 3], [0, 4, 3], []])
def test_bounds_that_are_no_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="must start at 0 and never decrease"):
        Documents(torch.tensor(bounds, dtype=torch.int32))


@pytest.mark.parametrize("shape", [(1, 6), (2, 5)])
def test_documents_must_fill_the_one_row(shape):
    with pytest.raises(ValueError, match=r"packed documents end at 5.*one row"):
        Documents.of(torch.tensor([0, 2, 5]), torch.zeros(shape))


def test_rows_are_documents_of_equal_length():
    assert Documents.of(None, torch.zeros(3, 4, 7)).bounds == [0, 4, 8, 12]


def test_derived_is_computed_once():
    calls = []

    def build(documents, factor):
        calls.append(factor)
        return len(documents) * factor

    documents = Documents(torch.tensor([0, 1, 5]))
    assert [documents.derived(build, f) for f in (2, 2, 3)] == [4, 4, 6]
    assert calls == [2, 3]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    chunk_length=st.integers(1, 9),
    block_tokens=st.none() | st.integers(1, 64),
)
def test_layout_keeps_every_token_once_and_documents_apart(lengths, chunk_length, block_tokens):
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    layout = chunk_layout(Documents(bounds), chunk_length, block_tokens, bounds.device)
    document_of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    num_tokens = sum(lengths)

    assert torch.equal(layout.tokens[layout.places], torch.arange(num_tokens))
    assert torch.equal(take(layout.tokens, layout.read_back), torch.arange(num_tokens))
    chunks = document_of[layout.tokens].view(-1, chunk_length)
    assert (chunks == chunks[:, :1]).all()
    assert len(chunks) == sum(-(-length // chunk_length) for length in lengths)

    ranked = torch.tensor(lengths)[layout.order]
    assert torch.equal(layout.order[layout.rank_of], torch.arange(len(lengths)))
    next_of_rank = [0] * len(lengths)
    padding = []
    covered = 0
    for block in layout.blocks:
        assert block.chunks.start * chunk_length == block.places.start == covered
        covered = block.places.stop
        tokens = take(torch.arange(num_tokens), block.tokens)
        assert torch.equal(tokens, layout.tokens[block.places])
        if block.padding is not None:
            padding += (block.padding + block.places.start).tolist()
        seen = 0
        for where, ranks in block.segments:
            assert where.start == seen
            assert where.stop - where.start == ranks.stop - ranks.start > 0
            seen = where.stop
            # each segment brings the next chunk of each of its documents, in order
            for index, rank in zip(
                range(*where.indices(10**6)), range(*ranks.indices(10**6)), strict=True
            ):
                first = layout.tokens[(block.chunks.start + index) * chunk_length]
                document = int(layout.order[rank])
                assert first == bounds[document] + next_of_rank[rank] * chunk_length
                next_of_rank[rank] += 1
        assert seen == block.chunks.stop - block.chunks.start
    assert covered == len(layout.tokens)
    assert next_of_rank == (-(-ranked // chunk_length)).tolist()
    assert sorted([*padding, *layout.places.tolist()]) == list(range(covered))
