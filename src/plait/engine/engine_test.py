import json
import re

import pytest
import torch

from plait.core.errors import CapacityError, CheckpointError, PlaitError, RequestError
from plait.data.tokenizer import Tokenizer
from plait.data.train_tokenizer import train_tokenizer
from plait.engine.engine import Engine
from plait.engine.fakes_test import MARK, ByteTokenizer, ScriptedModel
from plait.engine.request import Completion, Delta, Grammar, SamplingParams
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

GREEDY = SamplingParams(temperature=0)
FAKE = ByteTokenizer("think", ">\n\n", "</")


def script(name: int, prompt: str, output: str) -> tuple[list[int], list[int]]:
    """Return a prompt that no other script has, and the whole script."""
    prompt_ids = [NAMES[name], MARK, *FAKE.encode_plain(prompt)]
    return prompt_ids, prompt_ids + FAKE.encode_plain(output)


NAMES = list(range(60, 100))
TRACE = "Assistant\n<think>\n"


def test_more_requests_than_rows_each_in_its_own_state():
    lengths = [1, 9, 2, 17, 5, 3, 30, 4, 8, 1]
    pairs = [script(i, "q" * (1 + i % 4), "a" * n) for i, n in enumerate(lengths)]
    model = ScriptedModel(FAKE, *(whole for _, whole in pairs))
    engine = Engine(model, FAKE, max_num_seqs=3)
    completions = engine.generate([prompt for prompt, _ in pairs], GREEDY)
    for n, (prompt, whole), completion in zip(lengths, pairs, completions, strict=True):
        assert completion.content == "a" * n
        assert completion.finish_reason == "stop"
        assert model.read[prompt[0]] == whole
    assert model.widest == 3
    # A free row is taken at once: no group waits for its longest answer.
    assert model.num_forwards < sum(lengths) / 3 + max(lengths)


@pytest.mark.parametrize("chunk", [1, 33, 100, 1000])
def test_chunks_of_any_size_read_every_prompt_once(chunk):
    pairs = [script(i, "p" * n, "abc") for i, n in enumerate([1, 110, 30, 65])]
    model = ScriptedModel(FAKE, *(whole for _, whole in pairs))
    engine = Engine(model, FAKE, max_num_seqs=3, prefill_chunk_tokens=chunk)
    for completion in engine.generate([prompt for prompt, _ in pairs], GREEDY):
        assert completion.content == "abc"
    assert all(model.read[whole[0]] == whole for _, whole in pairs)


def test_a_long_prompt_does_not_stall_a_running_answer():
    short, long = script(0, "p", "a" * 30), script(1, "p" * 400, "b")
    model = ScriptedModel(FAKE, short[1], long[1])
    engine = Engine(model, FAKE, prefill_chunk_tokens=32)
    running, reading = (engine.submit(prompt, GREEDY) for prompt, _ in (short, long))
    for num_tokens in range(1, 12):
        engine.step()
        # A token for the one and 32 of the prompt for the other in every step but the first,
        # which read the short prompt.
        assert running.read().num_tokens == num_tokens
        assert reading.generation.num_fed == 32 * (num_tokens - 1)


def run(output: str, prompt: str = TRACE, **fields) -> tuple[Completion, ScriptedModel]:
    prompt_ids, whole = script(0, prompt, output)
    model = ScriptedModel(FAKE, whole)
    params = SamplingParams(temperature=0, **fields)
    return Engine(model, FAKE).generate([prompt_ids], params)[0], model


def test_newline_rule_closes_at_the_end_of_a_line():
    completion, model = run("one\ntwo\nthree\n---answer", max_thinking_tokens=5)
    assert completion.reasoning == "one\ntwo"
    assert completion.num_reasoning_tokens == 8
    # The forced close took the place of "thr": the script goes on behind it.
    assert completion.content == "ee\n---answer"
    assert completion.well_formed
    assert model.read[NAMES[0]] == completion.prompt_ids + completion.token_ids[:-1]


def test_newline_rule_forces_at_budget_and_grace():
    completion, _ = run("x" * 100, max_thinking_tokens=5, budget_grace_tokens=20)
    assert completion.num_reasoning_tokens == 25
    assert completion.reasoning == "x" * 25
    assert completion.well_formed


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_hard_rule_is_exact(budget):
    completion, model = run("x\n" * 50, max_thinking_tokens=budget, budget_rule="hard")
    assert completion.num_reasoning_tokens == budget
    assert (completion.reasoning or "") == ("x\n" * 50)[:budget].strip()
    forced = sum(completion.forced)
    assert forced == 3 + budget % 2
    # The close is read at once: as a part of the prompt or as one chunk.
    assert model.num_forwards == len(completion.token_ids) - forced


def test_a_trace_that_ends_by_itself_is_left_alone():
    completion, _ = run("ab\n</think>\n\nyes", max_thinking_tokens=5, budget_grace_tokens=3)
    assert (completion.reasoning, completion.content) == ("ab", "yes")
    assert not any(completion.forced)


def test_reopening_is_masked_and_free_on_request():
    output = "ab\n</think>\n\n<think>more</think>\n\nyes"
    free, _ = run(output, free_think_tags=True)
    assert (free.num_closing_tags, free.well_formed) == (2, False)
    assert free.content == "<think>more</think>\n\nyes"
    masked, _ = run(output)
    assert masked.num_closing_tags == 1
    assert masked.well_formed
    assert "<think>" not in masked.content


def test_an_exception_leaves_the_engine_usable():
    prompt, whole = script(0, "p", "abc")
    model = ScriptedModel(FAKE, whole)
    engine = Engine(model, FAKE)
    forward, model.forward = model.forward, lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.generate([prompt], GREEDY)
    model.forward = forward
    assert engine.generate([prompt], GREEDY)[0].content == "abc"


def test_a_stream_left_early_leaves_the_engine_usable():
    prompt, whole = script(0, "p", "abc")
    engine = Engine(ScriptedModel(FAKE, whole), FAKE)
    stream = engine.stream(prompt, GREEDY)
    assert next(stream).content == "a"
    stream.close()
    engine.model.read.clear()
    assert not engine.has_work
    assert engine.generate([prompt], GREEDY)[0].content == "abc"
    assert not torch.is_inference_mode_enabled()


def test_no_character_is_shown_before_it_is_whole():
    text = "né 😀€ END of <think>"
    prompt, whole = script(0, "p", text)
    engine = Engine(ScriptedModel(FAKE, whole), FAKE)
    *deltas, last = engine.stream(prompt, SamplingParams(temperature=0, stop=("<think>",)))
    assert [delta.content for delta in deltas] == list("né 😀€ END of ")
    assert last.content == ""
    assert last.completion.content == "né 😀€ END of "


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


def test_changed_weights_and_reset_forget_stored_prefixes(model, tokenizer):
    changed = init_weights(HybridLM(model.spec), seed=0)
    engine = Engine(changed, tokenizer)
    prompt = [{"role": "user", "content": "hello" + " cat" * 40}]
    params = SamplingParams(max_tokens=3, temperature=0)

    def num_cached() -> int:
        return engine.generate([prompt], params)[0].num_cached_tokens

    assert [num_cached(), num_cached() > 0] == [0, True]
    with torch.no_grad():
        changed.lm_head.weight.mul_(0.5)
    assert [num_cached(), num_cached() > 0] == [0, True]
    handle = engine.submit(prompt, params)
    with pytest.raises(ValueError, match="requests still run"):
        engine.reset()
    engine.cancel(handle)
    engine.reset()
    assert num_cached() == 0


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
    with pytest.raises(RequestError, match="logit_bias names token 99999"):
        say(logit_bias={99999: 1.0})


def test_min_tokens_hold_back_the_end():
    completion, _ = run("ab", PLAIN, min_tokens=6)
    assert len(completion.token_ids) == 7
    assert completion.text.startswith("ab")


PLAIN = "once upon"


def test_states_may_be_kept_short(model, tokenizer):
    single = init_weights(HybridLM(model.spec), seed=0)
    prompts, params = conversations(4), SamplingParams(max_tokens=12, temperature=0, logprobs=True)
    engines = [Engine(single, tokenizer), Engine(single, tokenizer, state_dtype=torch.bfloat16)]
    full, short = (engine.generate(prompts, params) for engine in engines)
    assert engines[1].memory_plan.state_bytes < 0.7 * engines[0].memory_plan.state_bytes
    for one, other in zip(full, short, strict=True):
        assert abs(one.logprobs[0] - other.logprobs[0]) < 0.05


def test_an_engine_that_does_not_fit_is_refused(model, tokenizer):
    with pytest.raises(CapacityError, match=r"does not fit in 1 MiB .*weights .*give more memory"):
        Engine(model, tokenizer, memory_bytes=2**20)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "hello world, the cat sat on it. User Assistant <think>\nso\n</think>\n\nyes é € "
    return train_tokenizer([text] * 4, vocab_size=300)


@pytest.fixture(scope="module")
def model(tokenizer) -> HybridLM:
    # Wider than the tokenizer, as padded vocabularies are.
    spec = ModelSpec.preset("test").model_copy(update={"vocab_size": tokenizer.vocab_size + 7})
    return init_weights(HybridLM(spec, dtype=torch.float64), seed=0)


NUM = 8


def conversations(num: int) -> list[list[dict[str, str]]]:
    switch = ["", " /no_think"]
    return [
        [{"role": "user", "content": "hello" + " cat" * (i * i % 13) + switch[i % 2]}]
        for i in range(num)
    ]


def some_params(i: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=4 + 5 * (i % 4),
        temperature=(0.0, 0.8, 1.5)[i % 3],
        top_p=(1.0, 0.9)[i % 2],
        top_k=(0, 20, 0)[i % 3],
        min_p=(0.0, 0.01)[i // 2 % 2],
        seed=i,
        max_thinking_tokens=(None, 0, 3, 8)[i % 4],
        budget_grace_tokens=4,
        budget_rule=("newline", "hard")[i // 3 % 2],
        logprobs=True,
        stop=("e",) if i % 5 == 4 else (),
        ignore_eos=i % 4 > 0,
    )


@pytest.fixture(scope="module")
def alone(model, tokenizer) -> list[Completion]:
    engine = Engine(model, tokenizer)
    prompts = conversations(NUM)
    return [engine.generate([p], some_params(i))[0] for i, p in enumerate(prompts)]


@pytest.mark.parametrize(
    ("order", "max_num_seqs", "chunk"),
    [(range(NUM), 3, 2048), (range(NUM)[::-1], 4, 16), ([3, 0, 7, 5, 1, 6, 2, 4], NUM, 40)],
)
def test_a_completion_does_not_depend_on_the_batch(
    model, tokenizer, alone, order, max_num_seqs, chunk
):
    engine = Engine(model, tokenizer, max_num_seqs=max_num_seqs, prefill_chunk_tokens=chunk)
    prompts = conversations(NUM)
    together = engine.generate([prompts[i] for i in order], [some_params(i) for i in order])
    for i, completion in zip(order, together, strict=True):
        assert completion.token_ids == alone[i].token_ids
        assert completion.content == alone[i].content
        got, want = torch.tensor([completion.logprobs, alone[i].logprobs])
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_streams_join_to_the_same_completion(model, tokenizer, alone):
    engine = Engine(model, tokenizer, prefill_chunk_tokens=11)
    for i, prompt in enumerate(conversations(NUM)):
        deltas = list(engine.stream(prompt, some_params(i)))
        completion = deltas[-1].completion
        assert completion is not None
        assert completion.token_ids == alone[i].token_ids
        assert "".join(delta.content for delta in deltas) == alone[i].content
        assert "".join(delta.reasoning for delta in deltas) == (alone[i].reasoning or "")
        assert all(delta.completion is None for delta in deltas[:-1])


def test_logprobs_equal_those_of_the_whole_sequence_in_float32(model, tokenizer):
    single = init_weights(HybridLM(model.spec), seed=0)
    engine = Engine(single, tokenizer, max_num_seqs=5, prefill_chunk_tokens=32)
    for completion in engine.generate(conversations(NUM), [some_params(i) for i in range(NUM)]):
        start = len(completion.prompt_ids)
        tokens = torch.tensor([completion.prompt_ids + completion.token_ids])
        with torch.no_grad():
            scores = single(tokens)[0, start - 1 : -1].log_softmax(-1)
        want = scores.gather(-1, tokens[0, start:, None])[:, 0]
        sampled = ~torch.tensor(completion.forced)
        got = torch.tensor(completion.logprobs)
        torch.testing.assert_close(got[sampled], want[sampled], atol=1e-4, rtol=0)
        assert torch.all(got[~sampled] == 0)


def check_budgets(model, tokenizer, rule, budgets) -> None:
    engine = Engine(model, tokenizer, max_num_seqs=40)
    grammar = Grammar(kind="regex", source="(cat|mat)[0-9]{2}")
    params = [
        SamplingParams(
            max_tokens=budget + 20,
            max_thinking_tokens=budget,
            budget_rule=rule,
            budget_grace_tokens=6,
            min_answer_tokens=8,
            ignore_eos=True,
            seed=budget,
            temperature=3.0,
            grammar=grammar if budget % 2 else None,
        )
        for budget in budgets
    ]
    prompts = conversations(1) * len(budgets)
    for budget, completion in zip(budgets, engine.generate(prompts, params), strict=True):
        assert completion.well_formed
        assert completion.text.count("</think>") == 1
        assert "<think>" not in completion.content
        # Room: 20 tokens less 8 for the answer and those of the closing tag.
        low, high = (budget, budget) if rule == "hard" else (budget, budget + 6)
        assert low <= completion.num_reasoning_tokens <= high
        assert len(completion.token_ids) - completion.num_reasoning_tokens >= 5
        if budget % 2:
            assert re.fullmatch(grammar.source, completion.content)


@pytest.mark.parametrize("rule", ["newline", "hard"])
def test_mixed_budgets_give_well_formed_output(model, tokenizer, rule):
    check_budgets(model, tokenizer, rule, [*range(9), 15, 40])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["newline", "hard"])
def test_every_budget_gives_well_formed_output(model, tokenizer, rule):
    check_budgets(model, tokenizer, rule, range(201))


def test_prompts_as_text_ids_and_conversation_are_the_same(model, tokenizer):
    engine = Engine(model, tokenizer)
    conversation = conversations(1)[0]
    text = tokenizer.render(conversation)
    ids = tokenizer.encode(text)
    params = SamplingParams(max_tokens=4, temperature=0)
    outputs = [c.token_ids for c in engine.generate([conversation, text, ids], params)]
    assert outputs[0] == outputs[1] == outputs[2]
    (off,) = engine.generate([conversation], params, enable_thinking=False)
    assert off.reasoning is None
    assert tokenizer.decode(off.prompt_ids).endswith("<think></think>")


def test_torch_seed_decides_where_no_seed_is_given(model, tokenizer):
    engine = Engine(model, tokenizer)
    prompts, params = conversations(1) * 2, SamplingParams(max_tokens=12, ignore_eos=True)
    torch.manual_seed(3)
    first = [completion.token_ids for completion in engine.generate(prompts, params)]
    torch.manual_seed(3)
    second = [completion.token_ids for completion in engine.generate(prompts, params)]
    assert first == second
    assert first[0] != first[1]


def test_training_goes_on_after_generation(model, tokenizer):
    Engine(model, tokenizer).generate(conversations(1), SamplingParams(max_tokens=3))
    model(torch.tensor([[20, 21, 22]])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ("hello", None, "put it in a list"),
        ([[{"role": "user", "content": "hi"}], ""], None, "prompt 1: the prompt is empty"),
        ([[]], None, "prompt is empty"),
        ([[{"role": "user", "content": 5}]], None, "prompt 0: .*must be text"),
        (["hi"], [GREEDY, GREEDY], "1 prompts but 2 sampling parameters"),
        (["hi" * 999], None, r"prompt 0: .* tokens and the context holds 64"),
        (["hi"], SamplingParams(max_tokens=99), "context holds 64"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(model, tokenizer, prompts, params, message):
    engine = Engine(model, tokenizer, max_context=64)
    with pytest.raises(RequestError, match=message):
        engine.generate(prompts, params)


@pytest.mark.parametrize("prompt", [["hi", "there"], {"role": "user"}, [5, {"role": "user"}], None])
def test_what_is_no_prompt_is_refused(model, tokenizer, prompt):
    encode = getattr(Engine.encode, "__wrapped__", Engine.encode)
    with pytest.raises(RequestError, match="a text, a list of token ids or a list of messages"):
        encode(Engine(model, tokenizer), prompt)


def test_a_full_context_ends_the_output(model, tokenizer):
    engine = Engine(model, tokenizer, max_context=24)
    (completion,) = engine.generate([[20] * 10], SamplingParams(temperature=0, ignore_eos=True))
    assert (len(completion.token_ids), completion.finish_reason) == (14, "length")


def test_no_prompts_give_no_completions(model, tokenizer):
    assert Engine(model, tokenizer).generate([]) == []


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer):
    spec = ModelSpec.preset("test").model_copy(update={"vocab_size": 64})
    with pytest.raises(CheckpointError, match="300 ids, the model 64"):
        Engine(HybridLM(spec, device="meta"), tokenizer)


@pytest.mark.parametrize("eos", [40, [40, 41]])
def test_from_path_reads_model_tokenizer_and_end_tokens(model, tokenizer, tmp_path, eos):
    from plait.model.hf import save

    save(model, tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    engine = Engine.from_path(tmp_path, max_num_seqs=2, max_context=100)
    assert engine._vocabulary.end_ids == {2, 12, 40} | ({41} if eos != 40 else set())
    prompt, params = conversations(1), SamplingParams(max_tokens=8, temperature=0)
    ours = Engine(model, tokenizer, end_ids=[40, 41]).generate(prompt, params)
    assert engine.generate(prompt, params)[0].text == ours[0].text
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: not a JSON object"):
        Engine.from_path(tmp_path)
