from hypothesis import given, settings
from hypothesis import strategies as st

from plait.engine.fakes_test import vocabulary
from plait.engine.generation import Generation
from plait.engine.request import SamplingParams
from plait.engine.scheduler import Scheduler

WORDS = vocabulary()
LETTER = 100


def generation(num_prompt: int, num_output: int) -> Generation:
    params = SamplingParams(max_tokens=num_output, temperature=0)
    return Generation([LETTER] * num_prompt, params, WORDS, 1000)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), max_size=12),
)
def test_any_workload_ends_with_rows_dense_and_in_the_right_place(num_rows, chunk, requests):
    scheduler = Scheduler(num_rows, chunk)
    generations = [generation(*request) for request in requests]
    for each in generations:
        scheduler.submit(each)
    rows: list[Generation | None] = [None] * num_rows
    order = []
    while scheduler.has_work:
        if prefill := scheduler.admit():
            assert sum(prefill.counts) <= chunk
            for offset, (each, count) in enumerate(zip(*prefill[1:3], strict=True)):
                row = prefill.first_row + offset
                if offset < prefill.num_continued:
                    assert rows[row] is each
                else:
                    assert each.num_fed == 0
                    order.append(each)
                rows[row] = each
                each.next_tokens(count)
            scheduler.mark_read()
            advance(scheduler, rows, [g for g in prefill.generations if not g.num_pending])
            scheduler.check()
        decoding = scheduler.decoding
        assert all(each.num_pending == 1 for each in decoding)
        for each in decoding:
            each.next_tokens(1)
        advance(scheduler, rows, decoding)
        scheduler.check()
        assert rows[: len(scheduler.running)] == scheduler.running
    assert order == generations
    assert all(len(each.token_ids) == n for each, (_, n) in zip(generations, requests, strict=True))


def advance(scheduler: Scheduler, rows: list, sampled: list[Generation]) -> None:
    for each in sampled:
        each.accept(LETTER, 0.0)
    for source, target in scheduler.retire():
        rows[target] = rows[source]


def test_a_free_row_is_taken_at_once():
    scheduler = Scheduler(2, 100)
    first, second, third = generation(3, 1), generation(3, 5), generation(3, 5)
    for each in (first, second, third):
        scheduler.submit(each)
    prefill = scheduler.admit()
    assert prefill is not None
    assert prefill.generations == [first, second]
    for each in prefill.generations:
        each.next_tokens(3)
    scheduler.mark_read()
    for each in prefill.generations:
        each.accept(LETTER, 0.0)
    assert scheduler.retire() == [(1, 0)]
    again = scheduler.admit()
    assert again is not None
    assert (again.first_row, again.generations) == (1, [third])


def test_a_long_prompt_is_read_in_chunks():
    scheduler = Scheduler(3, 8)
    long, short = generation(20, 1), generation(3, 1)
    scheduler.submit(long)
    scheduler.submit(short)
    counts = []
    while prefill := scheduler.admit():
        counts.append(prefill.counts)
        for each, count in zip(prefill.generations, prefill.counts, strict=True):
            each.next_tokens(count)
        scheduler.mark_read()
    assert counts == [[8], [8], [4, 3]]
