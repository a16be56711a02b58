import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.core.errors import RequestError
from plait.engine.budget import (
    CLOSE,
    OPEN,
    Phase,
    TagBans,
    Thinking,
    ThinkingLimits,
    phase_after,
    thinking_limits,
)
from plait.engine.request import SamplingParams

SMALL_BYTES = st.lists(
    st.sampled_from([b"<", b"/", b"think", b"th", b">", b"\n", b"a", CLOSE, OPEN])
)


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted(points), len(data)]
    return [data[i:j] for i, j in itertools.pairwise(edges)]


def observe(thinking: Thinking, pieces: list[bytes]) -> Thinking:
    for piece in pieces:
        thinking.observe(piece)
    return thinking


@given(
    st.sampled_from([b"", b"a\n", b"<", b"</", b"</thin<", b"<think>", b"a</thinkk>"]),
    st.sampled_from([b"", b"\n\nyes", b"<b>", b"</thi"]),
    st.lists(st.integers(0, 40)),
)
def test_closing_tag_is_found_however_tokens_cut_it(trace, answer, points):
    data = trace + CLOSE + answer
    pieces = cut(data, [min(point, len(data)) for point in points])
    thinking = observe(Thinking(Phase.THINKING), pieces)
    assert thinking.phase is Phase.ANSWER
    assert thinking.num_closing_tags == 1
    assert (thinking.trace_start, thinking.trace_end) == (0, len(trace))
    assert thinking.answer_start == len(trace + CLOSE)


@given(SMALL_BYTES.map(b"".join), st.lists(st.integers(0, 100)))
def test_tags_are_counted_as_in_the_whole_text(data, points):
    thinking = observe(Thinking(Phase.THINKING), cut(data, [min(p, len(data)) for p in points]))
    assert thinking.num_closing_tags == data.count(CLOSE)
    assert bytes(thinking.output) == data


@given(SMALL_BYTES.map(b"".join), SMALL_BYTES)
def test_bans_are_exactly_the_tokens_that_complete_a_tag(seen, pieces):
    pieces = [b"x", b">", *pieces]
    bans = TagBans(pieces)
    answer = observe(Thinking(Phase.ANSWER), [seen])
    tags_before = seen.count(CLOSE) + seen.count(OPEN)
    completing = [
        index
        for index, piece in enumerate(pieces)
        if (seen + piece).count(CLOSE) + (seen + piece).count(OPEN) > tags_before
    ]
    banned = bans.banned(answer)
    assert ([] if banned is None else banned.tolist()) == completing


def test_within_a_trace_only_tokens_with_a_second_tag_are_banned():
    bans = TagBans([CLOSE, b"k>", b"k></think>", b"k> <think>", OPEN, CLOSE + OPEN])
    assert bans.banned(observe(Thinking(Phase.THINKING), [b"a </thin"])).tolist() == [2, 3, 5]
    assert bans.banned(Thinking(Phase.THINKING)).tolist() == [5]
    assert bans.banned(Thinking(Phase.OUTSIDE)) is None


@pytest.mark.parametrize(
    ("last_turn", "phase"),
    [
        (b"Assistant\n<think>\n", Phase.THINKING),
        (b"Assistant\n<think></think>", Phase.ANSWER),
        (b"Assistant\n<think>\nfirst step\n", Phase.THINKING),
        (b"Assistant\n<think>\nfirst\n</think>\n\nThe", Phase.ANSWER),
        (b"Assistant\n", Phase.OUTSIDE),
        (b"what does <think> mean?", Phase.OUTSIDE),
        (b"text ending in <think>", Phase.THINKING),
        (b"text ending in </think>\n\n", Phase.ANSWER),
        (b"", Phase.OUTSIDE),
    ],
)
def test_phase_comes_from_the_last_turn(last_turn, phase):
    assert phase_after(last_turn) is phase


def limits(max_tokens=None, **fields) -> ThinkingLimits:
    return thinking_limits(SamplingParams(max_tokens=max_tokens, **fields), num_close_tokens=5)


def test_limits():
    assert limits() == (None, None)
    assert limits(max_thinking_tokens=100) == (100, 600)
    assert limits(max_thinking_tokens=100, budget_grace_tokens=7) == (100, 107)
    assert limits(max_thinking_tokens=100, budget_rule="hard") == (100, 100)
    assert limits(1000, max_thinking_tokens=100, min_answer_tokens=500) == (100, 495)
    assert limits(200, max_thinking_tokens=100, min_answer_tokens=150) == (45, 45)
    assert limits(200, min_answer_tokens=150) == (195 - 150, 195 - 150)
    with pytest.raises(
        RequestError, match=r"min_answer_tokens = 96 and 5 tokens.*max_tokens = 100"
    ):
        limits(100, min_answer_tokens=96)


def test_newline_rule_waits_for_the_end_of_a_line_and_then_forces():
    budget = ThinkingLimits(3, 8)
    thinking = observe(Thinking(Phase.THINKING, budget), [b"a\n", b"b"])
    assert thinking.phase is Phase.THINKING
    assert observe(thinking, [b"c"]).phase is Phase.GRACE
    assert observe(thinking, [b"d\n"]).phase is Phase.FORCING
    assert thinking.forced_text == "</think>\n\n"

    thinking = observe(Thinking(Phase.THINKING, budget), [b"a"] * 7)
    assert thinking.phase is Phase.GRACE
    assert observe(thinking, [b"a"]).phase is Phase.FORCING
    assert thinking.forced_text == "\n</think>\n\n"


def test_at_the_budget_a_trace_that_ends_a_line_is_closed_there():
    thinking = observe(Thinking(Phase.THINKING, ThinkingLimits(2, 500)), [b"a", b"b\n"])
    assert thinking.phase is Phase.FORCING


def test_budget_zero_closes_before_the_first_token():
    thinking = Thinking(Phase.THINKING, ThinkingLimits(0, 500))
    assert (thinking.phase, thinking.forced_text) == (Phase.FORCING, "</think>\n\n")
    inline = Thinking(Phase.THINKING, ThinkingLimits(0, 0), on_new_line=False)
    assert (inline.phase, inline.forced_text) == (Phase.FORCING, "\n</think>\n\n")
    assert Thinking(Phase.ANSWER, ThinkingLimits(0, 0)).phase is Phase.ANSWER


@pytest.mark.parametrize("length", range(2, len(CLOSE)))
def test_a_closing_tag_that_the_model_has_begun_is_completed(length):
    thinking = Thinking(Phase.THINKING, ThinkingLimits(2, 2))
    observe(thinking, [b"a\n", CLOSE[:length]])
    assert thinking.phase is Phase.FORCING
    observe(thinking, [thinking.forced_text.encode()])
    assert bytes(thinking.output) == b"a\n</think>\n\n"
    assert (thinking.phase, thinking.num_closing_tags) == (Phase.ANSWER, 1)


def test_forced_tokens_are_not_counted_as_trace():
    thinking = observe(Thinking(Phase.THINKING, ThinkingLimits(2, 2)), [b"a", b"b"])
    observe(thinking, [b"\n", b"</", b"think", b">\n\n"])
    assert (thinking.phase, thinking.num_trace_tokens) == (Phase.ANSWER, 2)


def test_a_model_that_opens_its_own_trace_is_held_to_the_budget():
    thinking = Thinking(Phase.OUTSIDE, ThinkingLimits(2, 2))
    observe(thinking, [b"<th", b"ink>a"])
    assert (thinking.phase, thinking.trace_start) == (Phase.THINKING, 7)
    assert observe(thinking, [b"b", b"c"]).phase is Phase.FORCING


def test_plain_text_with_a_tag_inside_stays_plain_text():
    thinking = observe(Thinking(Phase.OUTSIDE, ThinkingLimits(0, 0)), [b"a ", OPEN, b"x", CLOSE])
    assert (thinking.phase, thinking.answer_start, thinking.num_closing_tags) == (
        Phase.OUTSIDE,
        0,
        0,
    )
