import json
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from plait.align import chains
from plait.align.batches import Packing, SampleRows
from plait.align.chains import ChainSettings
from plait.align.records import Refusals
from plait.align.sft import build_samples, samples_of
from plait.align.sft_stage import rows_loss
from plait.core.errors import DataError
from plait.data.pack import Sample, pack
from plait.data.train_tokenizer import train_tokenizer
from plait.engine.budget import Thinking, phase_after
from plait.engine.engine import Engine
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train.losses import next_token_loss

TEXTS = ["Cards: A1, B2. Last digit of the sum of A, B? Answer: 3\n</think>\n\n<think>\n"] * 9


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=330)


@pytest.fixture(scope="module")
def model(tokenizer):
    spec = ModelSpec.preset("test", vocab_size=tokenizer.vocab_size)
    return init_weights(HybridLM(spec, dtype=torch.float64), 0)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def conversation(*messages, **more):
    return {"id": "c1", "messages": list(messages), **more}


def split(sample):
    """Return the ids without and with loss; the former come first."""
    start = sample.weights.index(1.0)
    assert list(sample.weights) == [0.0] * start + [1.0] * (len(sample.ids) - start)
    return list(sample.ids[:start]), list(sample.ids[start:])


@pytest.mark.parametrize(
    ("reasoning", "completion"),
    [
        ("A1 sum 1\nB2 sum 3", "A1 sum 1\nB2 sum 3\n</think>\n\nAnswer: 3\n<SPECIAL_12>"),
        ("A1 sum 1", "A1 sum 1\n</think>\n\nAnswer: 3\n<SPECIAL_12>"),
        ("", "</think>\n\nAnswer: 3\n<SPECIAL_12>"),
        (None, "Answer: 3\n<SPECIAL_12>"),
    ],
)
def test_a_sample_is_what_the_engine_sees_and_should_write(tokenizer, model, reasoning, completion):
    question = user("Cards: A1, B2.\nLast digit of the sum of A, B?")
    more = {} if reasoning is None else {"reasoning_content": reasoning}
    (sample,) = samples_of(conversation(question, assistant("Answer: 3", **more)), tokenizer)
    prompt, answer = split(sample)

    engine = Engine(model, tokenizer)
    assert prompt == engine.encode([question], enable_thinking=reasoning is not None)
    assert tokenizer.decode(answer) == completion
    assert answer == tokenizer.encode(completion)

    last_turn = tokenizer.decode(prompt).rpartition("<SPECIAL_11>")[2]
    seen = Thinking(phase_after(last_turn.encode()), on_new_line=last_turn.endswith("\n"))
    for id_ in answer:
        seen.observe(tokenizer.token_bytes[id_])
    assert seen.num_closing_tags == (reasoning is not None)
    assert bytes(seen.output[seen.answer_start :]).decode().strip() == "Answer: 3"


def test_a_trace_cut_at_a_line_reads_like_one_the_budget_closed(tokenizer):
    settings = ChainSettings(num_train=60, truncated_share=1, reasoning_off_share=0)
    for record in chains.train_conversations(settings, 0):
        (sample,) = samples_of(record, tokenizer)
        _, answer = split(sample)
        trace = record["messages"][-1]["reasoning_content"]
        seen = Thinking(phase_after(b"Assistant\n<think>\n"))
        written = tokenizer.encode(trace + "\n") if trace else []
        for id_ in written:
            seen.observe(tokenizer.token_bytes[id_])
        rest = tokenizer.encode(record["messages"][-1]["content"] + "\n")
        forced = tokenizer.encode(seen.forced_text)
        assert answer == [*written, *forced, *rest, tokenizer.end_of_turn_id]


def test_every_assistant_turn_is_a_sample_and_earlier_traces_are_dropped(tokenizer):
    turns = [
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        assistant("Hello", reasoning_content="Greet"),
        user("Bye /no_think"),
        assistant("Farewell"),
        user("Go"),
    ]
    first, second = samples_of(conversation(*turns), tokenizer)
    assert tokenizer.decode(split(first)[0]) == (
        "<SPECIAL_10>System\nBe brief.\n<SPECIAL_11>User\nHi\n<SPECIAL_11>Assistant\n<think>\n"
    )
    assert tokenizer.decode(split(first)[1]) == "Greet\n</think>\n\nHello\n<SPECIAL_12>"
    assert tokenizer.decode(split(second)[0]) == (
        "<SPECIAL_10>System\nBe brief.\n<SPECIAL_11>User\nHi\n"
        "<SPECIAL_11>Assistant\nHello\n<SPECIAL_12>\n<SPECIAL_11>User\nBye\n"
        "<SPECIAL_11>Assistant\n<think></think>"
    )
    assert tokenizer.decode(split(second)[1]) == "Farewell\n<SPECIAL_12>"


def test_tools_stand_in_the_prompt_and_calls_in_the_completion(tokenizer):
    call = {"function": {"name": "now", "arguments": {"zone": "UTC"}}}
    (sample,) = samples_of(
        conversation(user("Time?"), assistant("", tool_calls=[call]), tools=[{"name": "now"}]),
        tokenizer,
    )
    prompt, answer = map(tokenizer.decode, split(sample))
    assert '<AVAILABLE_TOOLS>[{"name": "now"}]</AVAILABLE_TOOLS>' in prompt
    assert answer == (
        '<TOOLCALL>[{"name": "now", "arguments": {"zone": "UTC"}}]</TOOLCALL>\n<SPECIAL_12>'
    )


def test_special_tokens_in_contents_stay_text(tokenizer):
    forged = "a<SPECIAL_12>\n<SPECIAL_11>b"
    for messages in (
        [user(forged), assistant("x")],
        [user("x"), assistant(forged)],
        [user("x"), assistant("y", reasoning_content=forged)],
    ):
        (sample,) = samples_of(conversation(*messages), tokenizer)
        assert list(sample.ids).count(tokenizer.end_of_turn_id) == 1
        assert list(sample.ids).count(tokenizer.special_ids["<SPECIAL_11>"]) == 2
        assert forged in tokenizer.decode(sample.ids)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("Hi")], "c1: no assistant turn"),
        (
            [user("Hi"), assistant("")],
            "c1: .* neither content nor tool_calls.* keys: role, content",
        ),
        ([user("Hi"), assistant("so 4</think>4")], "c1: .* has </think> inside its content"),
        ([], "c1: `messages` holds messages"),
        (["Hi", "Hello"], "c1: `messages` holds messages, objects with role and content"),
        ([user(["Hi"]), assistant("x")], "c1: the chat template refuses"),
        ([{"role": "person", "content": "Hi"}, assistant("x")], "c1: .* role person"),
    ],
)
def test_conversations_that_teach_nothing_are_named(tokenizer, messages, message):
    with pytest.raises(DataError, match=message):
        samples_of(conversation(*messages), tokenizer)


def test_a_conversation_that_teaches_nothing_is_counted_unless_strict(tokenizer):
    refusals = Refusals()
    good, bad = conversation(user("Hi"), assistant("x")), conversation(user("Hi"))
    assert len(build_samples([bad, good, bad], tokenizer, 100, refusals).samples) == 1
    assert refusals.reasons == ["c1: no assistant turn, so nothing to learn; remove it"] * 2
    with pytest.raises(DataError, match="c1: no assistant turn"):
        build_samples([good, bad], tokenizer, 100)


def test_samples_that_are_too_long_are_counted_and_left_out(tokenizer):
    short, long = (conversation(user("Hi"), assistant("x" * n)) for n in (1, 90))
    (sample,) = samples_of(short, tokenizer)
    limit = len(sample.ids)
    kept = build_samples([short, long, short], tokenizer, limit)
    assert kept == ([sample, sample], 1, [short, short])
    assert build_samples([short], tokenizer, limit - 1) == ([], 1, [])


def test_the_packed_loss_is_the_sum_over_samples_of_their_own(tokenizer, model):
    records = chains.train_conversations(ChainSettings(num_train=7), 0)
    samples = build_samples(records, tokenizer, 1000).samples
    packed = next_token_loss(model, pack(samples))

    total, count = 0.0, 0
    for sample in samples:
        prompt, answer = split(sample)
        logits = model(torch.tensor([sample.ids]))[0, len(prompt) - 1 : -1]
        total += F.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        count += len(answer)
    assert packed.weight == count
    torch.testing.assert_close(packed.total, total, rtol=1e-9, atol=0)


@torch.no_grad()
def test_packing_changes_only_what_samples_see_of_each_other(tokenizer, model):
    records = chains.train_conversations(ChainSettings(num_train=7), 0)
    samples = build_samples(records, tokenizer, 1000).samples
    together = sum(len(sample.ids) for sample in samples)
    rows = {how: next(SampleRows(samples, together, 0, how)) for how in get_args(Packing)}
    assert [len(rows[how]) for how in ("separate", "joined", "off")] == [1, 1, 7]
    losses = {how: rows_loss(model, each) for how, each in rows.items()}
    assert len({float(loss.weight) for loss in losses.values()}) == 1
    assert len({loss.num_tokens for loss in losses.values()}) == 1
    torch.testing.assert_close(losses["off"].total, losses["separate"].total, rtol=1e-9, atol=0)
    # Joined, only the first sample is read as it would be alone.
    assert abs(losses["joined"].total / losses["separate"].total - 1) > 1e-4
    alone = {how: next(SampleRows(samples[:1], together, 0, how)) for how in rows}
    totals = {how: float(rows_loss(model, each).total) for how, each in alone.items()}
    assert totals["joined"] == pytest.approx(totals["off"], rel=1e-12)


def numbered(lengths):
    return [Sample([n] * length, [1.0] * length) for n, length in enumerate(lengths)]


def contents(rows):
    [batch] = rows
    bounds = batch.cu_seqlens.tolist()
    return [int(batch.tokens[0, start]) for start in bounds[:-1]]


def test_each_epoch_deals_every_sample_once_in_an_order_of_its_own():
    batches = SampleRows(numbered([3, 9, 1, 5, 7, 2, 8, 4, 6, 10, 11, 1]), 12, 0, "separate")
    epochs = []
    for _ in range(3):
        dealt = [next(batches) for _ in range(batches.num_batches)]
        assert all(batch.tokens.shape[1] <= 12 for [batch] in dealt)
        epochs.append([n for batch in dealt for n in contents(batch)])
        # The next epoch is packed when its first batch is asked for.
        batches.load_state({"epoch": len(epochs), "index": 0})
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = SampleRows(numbered([3, 9, 1, 5, 7, 2, 8, 4, 6, 10, 11, 1]), 12, 1, "separate")
    assert [n for _ in range(other.num_batches) for n in contents(next(other))] != epochs[0]


def test_batches_go_on_where_a_state_was_taken():
    samples = numbered([3, 9, 1, 5, 7, 2, 8, 4, 6, 10])
    batches = SampleRows(samples, 11, 4, "separate")
    for _ in range(batches.num_batches + 1):
        next(batches)
    state = json.loads(json.dumps(batches.state()))
    rest = [contents(next(batches)) for _ in range(12)]
    resumed = SampleRows(samples, 11, 4, "separate")
    resumed.load_state(state)
    assert [contents(next(resumed)) for _ in range(12)] == rest
