import json

import pytest
import torch

from plait.core.errors import CapacityError, CheckpointError, RequestError
from plait.engine.engine import Engine
from plait.engine.fakes_test import FAKE, GREEDY, NUM, ScriptedModel, conversations, script
from plait.engine.request import Completion, SamplingParams
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec


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
    engine.stream(prompt, GREEDY).close()  # before its first piece
    assert not engine.has_work
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
    for text, message in (("{", "not a JSON object"), ('{"eos_token_id": ["a"]}', "eos_token_id")):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=rf"generation_config\.json: {message}"):
            Engine.from_path(tmp_path)
