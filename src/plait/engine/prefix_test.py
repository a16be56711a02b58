import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from plait.engine.engine import Engine
from plait.engine.fakes_test import MARK, ByteTokenizer
from plait.engine.prefix import hash_chain, useful_places
from plait.engine.request import SamplingParams
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.model.state import BLOCK_TOKENS

TOKENIZER = ByteTokenizer("think", ">\n\n", "</")


def test_chains_agree_as_far_as_prompts_do():
    first, second = list(range(100)), [*range(70), *range(30)]
    one, two = hash_chain(first), hash_chain(second)
    assert len(one) == 3
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert len(hash_chain(first[:96])) == 2  # the last token is always read
    assert hash_chain(first[:32]) == hash_chain([]) == []


def test_places_are_behind_the_first_message_and_before_the_last_header():
    assert useful_places([0, 70, 130, 200]) == [64, 192]
    assert useful_places([0, 1, 70, 130]) == [64, 128]  # a beginning of text before the first
    assert useful_places([0, 20]) == []
    assert useful_places([0, 100]) == [96]
    assert useful_places([]) == useful_places([0]) == []


@pytest.fixture(scope="module")
def model() -> HybridLM:
    spec = ModelSpec.preset("test", vocab_size=len(TOKENIZER.token_bytes), pattern="M*-M")
    return init_weights(HybridLM(spec), seed=0)


SYSTEMS = ["s" * 40, "t" * 75, "s" * 33 + "u" * 40]
WORDS = [" cat", " sat on", " the mat, and then it", "?" * 45]

REQUESTS = st.tuples(
    st.sampled_from(SYSTEMS),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([1, 40, 90]),
    st.sampled_from([0.0, 0.0, 1.0, 2.0]),
    st.sampled_from([None, 0, 3, 20]),
    st.integers(0, 3),
)
WORKLOADS = st.tuples(
    st.lists(st.lists(REQUESTS, min_size=2, max_size=5), min_size=1, max_size=3),
    st.integers(2, 4),
    st.integers(0, 4),
    st.integers(1, 8),
    st.sampled_from([32, 64, 512]),
)


def prompt_of(system: str, words: list[str], thinks: bool) -> list[int]:
    header = "Assistant\n<think>\n" if thinks else "Assistant\n<think></think>"
    texts = [f"System\n{system}\n", *(f"User\n{word}\n" for word in words), header]
    return [token for text in texts for token in (MARK, *TOKENIZER.encode_plain(text))]


def params_of(num_tokens, temperature, budget, seed) -> SamplingParams:
    return SamplingParams(
        max_tokens=num_tokens,
        temperature=temperature,
        max_thinking_tokens=budget,
        budget_grace_tokens=5,
        seed=seed,
        ignore_eos=True,
        logprobs=True,
    )


def run(model, workload, **plan) -> tuple[list, Engine]:
    """Run batches of requests one after the other; the plan's fields as given."""
    batches, chunk = workload
    engine = Engine(model, TOKENIZER, prefill_chunk_tokens=chunk, max_context=400)
    engine.memory_plan = engine.memory_plan._replace(**plan)
    completions = []
    for batch in batches:
        prompts = [prompt_of(*request[:3]) for request in batch]
        params = [params_of(*request[3:]) for request in batch]
        completions += engine.generate(prompts, params)
        engine._loop.scheduler.check()
    return completions, engine


def compare(model, workload) -> Engine:
    batches, num_rows, num_stored, spare_blocks, chunk = workload
    sizes = [len(prompt_of(*request[:3])) + request[3] for batch in batches for request in batch]
    num_blocks = -(-max(sizes) // BLOCK_TOKENS) + spare_blocks
    tight = {"num_rows": num_rows, "num_stored": num_stored, "num_blocks": num_blocks}
    got, engine = run(model, (batches, chunk), **tight)
    want, _ = run(model, (batches, 512), num_rows=1, num_stored=0)
    for ours, alone in zip(got, want, strict=True):
        assert ours.token_ids == alone.token_ids
        assert ours.forced == alone.forced
        torch.testing.assert_close(
            torch.tensor(ours.logprobs), torch.tensor(alone.logprobs), atol=1e-4, rtol=0
        )
        assert alone.num_cached_tokens == 0
    return engine


def compare_many(model, num_workloads: int) -> None:
    hits = preemptions = 0

    @settings(
        max_examples=num_workloads,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    @given(workload=WORKLOADS)
    def every(workload):
        nonlocal hits, preemptions
        stats = compare(model, workload).stats()
        hits += stats.prefix_hit_tokens
        preemptions += stats.num_preemptions

    every()
    assert hits > 10 * num_workloads
    assert preemptions > num_workloads / 4


def test_reuse_and_preemption_do_not_change_a_token(model):
    compare_many(model, 6)


@pytest.mark.slow
def test_reuse_and_preemption_do_not_change_a_token_in_200_workloads(model):
    compare_many(model, 200)
