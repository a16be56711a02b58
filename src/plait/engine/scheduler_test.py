"""The scheduler drives a simulated state, which knows of each row and block the tokens it holds."""

from collections.abc import Set

from hypothesis import given, settings
from hypothesis import strategies as st

from plait.core.errors import RequestError
from plait.engine.blocks import BlockPool
from plait.engine.fakes_test import MARK, vocabulary
from plait.engine.generation import Generation
from plait.engine.prefix import PrefixCache
from plait.engine.request import SamplingParams
from plait.engine.scheduler import Rows, Scheduler
from plait.model.state import BLOCK_TOKENS

WORDS = vocabulary()
LETTER = 100


def generation(prompt: list[int], num_output: int = 1) -> Generation:
    params = SamplingParams(max_tokens=num_output, temperature=0)
    return Generation(prompt, params, WORDS, 10_000)


class Simulation(Rows):
    """Rows that hold the tokens they read, as states do, and blocks that hold theirs."""

    def __init__(self, num_rows: int, num_blocks: int, num_slots: int, chunk: int) -> None:
        self.read: list[list[int] | None] = [None] * num_rows
        self.tables: list[dict[int, int]] = [{} for _ in range(num_rows)]
        self.slots: dict[int, list[int]] = {}
        self.written: dict[int, list[int]] = {}
        self.num_fed = 0
        blocks = BlockPool(num_blocks)
        self.scheduler = Scheduler(self, num_rows, blocks, PrefixCache(num_slots, blocks), chunk)

    def start(self, row, slot):
        self.read[row] = [] if slot is None else list(self.slots[slot])
        self.tables[row] = {}

    def assign(self, row, start, blocks, *, are_new=True):
        for place, block in enumerate(blocks, start):
            self.tables[row][place] = block
            if are_new:
                self.written[block] = []

    def swap(self, first, second):
        for held in (self.read, self.tables):
            held[first], held[second] = held[second], held[first]

    def store(self, row, slot):
        self.slots[slot] = list(self.read[row])

    def feed(self, row: int, each: Generation, count: int) -> None:
        state = self.read[row]
        for token in each.next_tokens(count):
            block = self.tables[row][len(state) // BLOCK_TOKENS]
            assert len(self.written[block]) == len(state) % BLOCK_TOKENS
            self.written[block].append(token)
            state.append(token)
        self.num_fed += count
        everything = each.prompt_ids + each.token_ids
        assert state == everything[: each.num_fed]
        table = self.tables[row]
        known = [token for place in range(len(table)) for token in self.written[table[place]]]
        assert known[: len(state)] == state

    def step(self, fail: Set[int] = frozenset()) -> None:
        scheduler = self.scheduler
        decoding, width = scheduler.decode()
        scheduler.check()
        for row, each in enumerate(decoding):
            self.feed(row, each, width)
        self.advance(decoding, fail)
        budget = scheduler.chunk_tokens
        while budget and (prefill := scheduler.prefill(budget)):
            assert sum(prefill.counts) <= budget
            pairs = zip(prefill.generations, prefill.counts, strict=True)
            for row, (each, count) in enumerate(pairs, prefill.first_row):
                assert not (each.num_fed + count) % BLOCK_TOKENS or count == each.num_pending
                self.feed(row, each, count)
            scheduler.mark_read()
            self.advance(prefill.generations, fail)
            budget -= min(budget, sum(prefill.counts))

    def advance(self, generations: list[Generation], fail: Set[int]) -> None:
        for each in generations:
            if id(each) in fail:
                each.error = RequestError("failed")
            elif not each.num_pending:
                each.accept(LETTER, 0.0)
        self.scheduler.retire()
        self.scheduler.check()

    def run(self, generations: list[Generation]) -> None:
        for each in generations:
            self.scheduler.submit(each)
        while self.scheduler.has_work:
            self.step()


def prompts():
    """Prompts that share beginnings: messages of few kinds, with marks between them."""
    message = st.tuples(st.integers(1, 3), st.integers(1, 80))
    return st.lists(message, min_size=1, max_size=4).map(
        lambda messages: [
            token for letter, size in messages for token in (MARK, *[LETTER + letter] * size)
        ]
    )


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 4),
    chunk=st.integers(1, 100),
    num_slots=st.integers(0, 4),
    spare_blocks=st.integers(0, 12),
    requests=st.lists(st.tuples(prompts(), st.integers(1, 70)), max_size=10),
    ends=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30), st.booleans()), max_size=3),
)
def test_any_workload_ends_with_every_row_and_block_where_it_belongs(
    num_rows, chunk, num_slots, spare_blocks, requests, ends
):
    longest = max((len(prompt) + size for prompt, size in requests), default=1)
    num_blocks = -(-longest // BLOCK_TOKENS) + spare_blocks
    simulation = Simulation(num_rows, num_blocks, num_slots, chunk)
    scheduler = simulation.scheduler
    generations = [generation(*request) for request in requests]
    for each in generations:
        scheduler.submit(each)
    steps = 0
    while scheduler.has_work:
        due = [generations[i] for i, at, _ in ends if i < len(generations) and at == steps]
        for each, (_, _, is_cancelled) in zip(due, ends, strict=False):
            if is_cancelled and not each.is_over:
                each.error = RequestError("cancelled")
                scheduler.forget_waiting(each)
                scheduler.retire()
                scheduler.check()
        simulation.step({id(each) for each in due})
        steps += 1
        assert steps < 5000
    for each, (_, size) in zip(generations, requests, strict=True):
        assert each.error is not None or len(each.token_ids) == size
    scheduler.check()
    while scheduler.prefix.drop_oldest():
        pass
    assert scheduler.blocks.num_free == num_blocks


def test_a_free_row_is_taken_at_once():
    simulation = Simulation(2, 100, 0, 100)
    first, second, third = (generation([LETTER] * 3, size) for size in (1, 5, 5))
    for each in (first, second, third):
        simulation.scheduler.submit(each)
    simulation.step()
    assert [job.generation for job in simulation.scheduler.running] == [second, third]


def test_a_long_prompt_is_read_in_chunks():
    simulation = Simulation(3, 100, 0, 64)
    long, short = generation([LETTER] * 150), generation([LETTER] * 3)
    simulation.scheduler.submit(long)
    simulation.scheduler.submit(short)
    counts = []
    for _ in range(3):
        prefill = simulation.scheduler.prefill(64)
        assert prefill is not None
        counts.append(prefill.counts)
        for row, (each, count) in enumerate(zip(*prefill[1:], strict=True), prefill.first_row):
            simulation.feed(row, each, count)
        simulation.scheduler.mark_read()
    assert counts == [[64], [64], [22, 3]]


def test_without_blocks_the_newest_goes_back_to_the_head_of_the_line():
    # Three requests grow to 3 blocks each, and there are 5.
    simulation = Simulation(3, 5, 0, 64)
    old, middle, new = (generation([LETTER] * 20, 60) for _ in range(3))
    finished = []
    for each in (old, middle, new):
        simulation.scheduler.submit(each)
    while simulation.scheduler.has_work:
        simulation.step()
        finished += [each for each in (old, middle, new) if each.is_over and each not in finished]
    assert finished == [old, middle, new]
    assert simulation.scheduler.num_preemptions == 2


def chat(*turns: int) -> list[int]:
    """Return a conversation: a system block of 70 tokens, turns, and the header of an answer."""
    prompt = [MARK, *[LETTER + 1] * 69]
    for letter in turns:
        prompt += [MARK, *[LETTER + letter] * 50]
    return [*prompt, MARK, LETTER, LETTER]


def test_the_next_turn_reads_only_what_is_new():
    simulation = Simulation(4, 100, 8, 512)
    first, second, other = generation(chat(2)), generation(chat(2, 3)), generation(chat(4))
    for each in (first, second, other):
        simulation.run([each])
    # The end of the first question lies at 121, that of the system block at 70.
    assert [each.num_cached_tokens for each in (first, second, other)] == [0, 96, 64]
    assert simulation.scheduler.prefix_hit_tokens == 160
    assert simulation.num_fed == len(chat(2)) + len(chat(2, 3)) + len(chat(4)) - 160


def test_many_answers_to_one_prompt_read_it_once():
    simulation = Simulation(8, 100, 8, 512)
    generations = [generation(chat(2)) for _ in range(8)]
    simulation.run(generations)
    assert [each.num_cached_tokens for each in generations] == [0, *[96] * 7]


def test_plain_prompts_that_part_are_stored_at_the_second_sight():
    simulation = Simulation(1, 100, 8, 512)
    shared = [LETTER] * 200
    generations = [generation(shared + [LETTER + i] * 40) for i in range(1, 5)]
    for each in generations:
        simulation.run([each])
    assert [each.num_cached_tokens for each in generations] == [0, 0, 192, 192]


def test_scored_prompts_are_read_as_a_whole():
    simulation = Simulation(1, 100, 8, 512)
    simulation.run([generation(chat(2))])
    params = SamplingParams(max_tokens=1, prompt_logprobs=True)
    scored = Generation(chat(2), params, WORDS, 1000)
    simulation.run([scored])
    assert scored.num_cached_tokens == 0


def test_of_prompts_that_are_scored_only_so_much_is_read_at_once():
    simulation = Simulation(8, 400, 0, 2048)
    params = SamplingParams(max_tokens=1, prompt_logprobs=True)
    for number in range(4):
        prompt = [LETTER + number] * 100
        simulation.scheduler.submit(Generation(prompt, params, WORDS, 1000))
    simulation.scheduler.submit(generation([LETTER] * 1000))
    prefill = simulation.scheduler.prefill(2048)
    assert sum(prefill.counts[:4]) <= 256


def test_stored_prefixes_give_way_least_recently_used_first():
    simulation = Simulation(1, 100, 2, 512)
    first, second = chat(2), [MARK, *[LETTER + 9] * 60, MARK, LETTER]
    simulation.run([generation(first)])  # two places fill both slots: behind 64 and 96 tokens
    simulation.run([generation(second)])  # its only place takes the slot of the 64
    again = [generation(chat(4)), generation(first), generation(second)]
    for each in again:
        simulation.run([each])
    assert [each.num_cached_tokens for each in again] == [0, 64, 0]


def test_a_request_that_must_wait_costs_no_stored_prefix():
    simulation = Simulation(2, 9, 4, 512)
    simulation.run([generation(chat(2))])
    num_stored = simulation.scheduler.prefix.num_stored
    running, waiting = generation([LETTER] * 100, 20), generation([LETTER] * 150, 2)
    for each in (running, waiting):
        simulation.scheduler.submit(each)
    for _ in range(5):
        simulation.step()
    assert len(simulation.scheduler.waiting) == 1
    assert simulation.scheduler.prefix.num_stored == num_stored == 2
    while simulation.scheduler.has_work:
        simulation.step()
    assert waiting.finish_reason == "length"
