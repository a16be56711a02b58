import re

import pytest

from plait.engine.engine import Engine
from plait.engine.fakes_test import FAKE, NAMES, TRACE, ScriptedModel, conversations, run, script
from plait.engine.request import Grammar, SamplingParams


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


def test_a_budget_of_nothing_gives_no_trace_where_the_prompt_ends_in_the_tag():
    completion, _ = run(
        "abc def " * 9, prompt="Assistant\n<think>", max_thinking_tokens=0, max_tokens=90
    )
    assert completion.num_reasoning_tokens == 0
    assert completion.well_formed


def test_a_trace_is_closed_in_time_where_only_the_context_bounds_the_answer():
    prompt, whole = script(0, TRACE, "abc " * 60)
    engine = Engine(ScriptedModel(FAKE, whole), FAKE, max_context=64)
    params = SamplingParams(temperature=0, max_thinking_tokens=40)
    assert engine.generate([prompt], params)[0].well_formed


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
