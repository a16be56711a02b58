import pytest
import torch

from plait.core.errors import PlaitError, RequestError
from plait.engine.engine import Engine
from plait.engine.fakes_test import (
    FAKE,
    GREEDY,
    PLAIN,
    TRACE,
    ScriptedModel,
    conversations,
    run,
    script,
)
from plait.engine.request import Delta, SamplingParams


def test_an_exception_of_a_forward_ends_only_the_requests_in_it():
    first, second = script(0, "p", "abcdef"), script(1, "q" * 40, "ghi")
    model = ScriptedModel(FAKE, first[1], second[1])
    engine = Engine(model, FAKE)
    running, reading = (engine.submit(prompt, GREEDY) for prompt, _ in (first, second))
    forward = model.forward

    def fails_on_packed_rows(tokens, **options):
        if tokens.shape[1] > 1 and options["state"].lengths[0] == 0:
            raise MemoryError("no room")
        return forward(tokens, **options)

    engine.cancel(reading)
    engine.step()
    late = engine.submit(second[0], GREEDY)
    model.forward = fails_on_packed_rows
    while engine.has_work:
        engine.step()
    assert running.completion().content == "abcdef"
    assert late.finished
    with pytest.raises(MemoryError, match="no room"):
        late.completion()
    with pytest.raises(MemoryError, match="no room"):
        late.read()
    with pytest.raises(RequestError, match="cancelled"):
        reading.completion()
    model.forward = forward
    assert engine.generate([second[0]], GREEDY)[0].content == "ghi"
    assert engine.stats().kv_blocks_used == engine.stats().num_running == 0


def test_logits_that_are_not_finite_fail_their_own_row():
    pairs = [script(i, "p" * (i + 1), "abcdef") for i in range(3)]
    model = ScriptedModel(FAKE, *(whole for _, whole in pairs))
    engine = Engine(model, FAKE)
    handles = [engine.submit(prompt, GREEDY) for prompt, _ in pairs]
    forward = model.forward

    def broken(*arguments, **options):
        logits = forward(*arguments, **options)
        return torch.cat([logits[:1], logits[1:2] * torch.nan, logits[2:]])

    engine.step()
    model.forward = broken
    engine.step()
    model.forward = forward
    while engine.has_work:
        engine.step()
    assert [handle.generation.error is None for handle in handles] == [True, False, True]
    with pytest.raises(PlaitError, match="not finite"):
        handles[1].completion()
    assert handles[0].completion().content == handles[2].completion().content == "abcdef"


def test_a_handle_reads_text_tokens_and_scores_piece_by_piece():
    prompt, whole = script(0, TRACE, "so\n</think>\n\nyes")
    engine = Engine(ScriptedModel(FAKE, whole), FAKE)
    params = SamplingParams(temperature=0, logprobs=True, top_logprobs=2)
    handle = engine.submit(prompt, params)
    assert handle.prompt_ids == prompt
    deltas = [handle.read()]
    while not handle.finished:
        engine.step()
        deltas.append(handle.read())
    completion = handle.completion()
    assert deltas[0] == Delta(token_ids=[], logprobs=[], top_logprobs=[])
    assert deltas[-1].completion == completion
    assert [t for delta in deltas for t in delta.token_ids] == completion.token_ids
    assert [p for delta in deltas for p in delta.logprobs] == completion.logprobs
    assert [p for delta in deltas for p in delta.top_logprobs] == completion.top_logprobs
    assert "".join(delta.reasoning for delta in deltas) == "so"
    assert "".join(delta.content for delta in deltas) == "yes"
    assert handle.read() == Delta(
        num_tokens=len(completion.token_ids),
        completion=completion,
        token_ids=[],
        logprobs=[],
        top_logprobs=[],
    )


def test_stats_count_what_happened():
    pairs = [script(i, TRACE, "x" * 50) for i in range(3)]
    engine = Engine(ScriptedModel(FAKE, *(whole for _, whole in pairs)), FAKE, max_num_seqs=2)
    params = SamplingParams(temperature=0, max_thinking_tokens=4, budget_rule="hard", max_tokens=12)
    handles = [engine.submit(prompt, params) for prompt, _ in pairs]
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 1)
    assert stats.kv_blocks_used == 2
    assert stats.memory_plan is engine.memory_plan
    while engine.has_work:
        engine.step()
    stats = engine.stats()
    assert stats.prompt_tokens == 3 * len(pairs[0][0])
    assert stats.generated_tokens == sum(len(h.completion().token_ids) for h in handles) == 36
    assert (stats.reasoning_tokens, stats.forced_closes) == (12, 3)
    assert (stats.kv_blocks_used, stats.state_slots_used) == (0, 0)


def test_a_prompt_is_scored_as_a_forward_scores_it(model, tokenizer):
    engine = Engine(model, tokenizer, prefill_chunk_tokens=32)
    prompts = [tokenizer.encode("hello cat " * 30), [20, 21], tokenizer.encode("the cat sat")]
    params = [
        SamplingParams(max_tokens=1, prompt_logprobs=True, top_logprobs=3, temperature=0),
        SamplingParams(max_tokens=5, prompt_logprobs=True, temperature=0),
        SamplingParams(max_tokens=5, temperature=0),
    ]
    *scored, plain = engine.generate(prompts, params)
    assert plain.prompt_logprobs is None
    for completion in scored:
        tokens = torch.tensor([completion.prompt_ids])
        want = model(tokens).detach()[0].log_softmax(-1)
        first, *got = completion.prompt_logprobs
        assert first is None
        own = want[:-1].gather(-1, tokens[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), own)
    tops = scored[0].prompt_top_logprobs
    values, ids = model(torch.tensor([prompts[0]])).detach()[0].log_softmax(-1)[:, :300].topk(3)
    assert [[top.token_id for top in each] for each in tops] == [[], *ids[:-1].tolist()]
    assert [top.logprob for top in tops[7]] == pytest.approx(values[6].tolist())


def test_penalties_and_biases_change_the_choice():
    def say(**fields) -> str:
        return run("aabbccdd", PLAIN, max_tokens=8, **fields)[0].text

    a, x = FAKE.encode_plain("ax")
    assert say() == "aabbccdd"
    assert say(logit_bias={x: 100.0}) == "x" * 8
    assert say(logit_bias={a: -100.0})[:2] != "aa"
    # A script's token has logit 50, all others 0.
    assert say(presence_penalty=2.0) == say(frequency_penalty=2.0) == "aabbccdd"
    assert say(repetition_penalty=1e9, logit_bias={x: 1.0})[1] == "x"
    with pytest.raises(RequestError, match="logit_bias holds token id 99999"):
        say(logit_bias={99999: 1.0})


def test_min_tokens_hold_back_the_end():
    completion, _ = run("ab", PLAIN, min_tokens=6)
    assert len(completion.token_ids) == 7
    assert completion.text.startswith("ab")
    [stop] = FAKE.encode_plain("c")
    completion, _ = run("abcdefghij", PLAIN, min_tokens=6, stop_token_ids=(stop,))
    assert len(completion.token_ids) >= 6
    completion, _ = run("ab", PLAIN, min_tokens=6, max_tokens=8, ignore_eos=True)
    assert len(completion.token_ids) == 8


def test_a_top_k_beyond_any_number_keeps_all_and_harms_nobody(model, tokenizer):
    engine = Engine(model, tokenizer)
    params = [SamplingParams(max_tokens=5, seed=1, top_k=top_k) for top_k in (0, 10**400)]
    first, second = engine.generate(["a b", "a b"], params)
    assert first.token_ids == second.token_ids


def test_decoding_leaves_no_tensor_behind(model, tokenizer):
    """Keys and values go into blocks and states are written in place: a token costs no memory."""
    engine = Engine(model, tokenizer, max_num_seqs=3, max_context=256)
    params = SamplingParams(max_tokens=100, ignore_eos=True, seed=0, max_thinking_tokens=9)
    for prompt in conversations(3):
        engine.submit(prompt, params)
    for _ in range(12):
        engine.step()
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(8):
            engine.step()
    sizes = [event.self_cpu_memory_usage for event in profile.key_averages()]
    assert max(sizes) > 1000
    assert sum(sizes) == 0
