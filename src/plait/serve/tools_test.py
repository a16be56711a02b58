import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plait.serve.tools import ToolParser


def parse(*chunks: str) -> tuple[str, list[tuple[str, object]]]:
    ids = itertools.count()
    parser = ToolParser(lambda: f"call_{next(ids)}")
    pieces = [parser.feed(chunk) for chunk in chunks] + [parser.finish()]
    calls = [call for piece in pieces for call in piece.calls]
    assert [call.id for call in calls] == [f"call_{i}" for i in range(len(calls))]
    content = "".join(piece.content for piece in pieces)
    return content, [(call.name, json.loads(call.arguments)) for call in calls]


A = '{"name": "a", "arguments": {"x": 1}}'
B = '{"name": "b", "arguments": {"text": "a {brace}, a \\"quote\\" and </TOOLCALL>"}}'
CALL_B = ("b", {"text": 'a {brace}, a "quote" and </TOOLCALL>'})


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("no call at all", "no call at all", []),
        (f"<TOOLCALL>[{A}]</TOOLCALL>", "", [("a", {"x": 1})]),
        (f"before\n\n<TOOLCALL>[{A}, {B}]</TOOLCALL>", "before", [("a", {"x": 1}), CALL_B]),
        (f"<TOOLCALL>[{A}]</TOOLCALL>\nafter", "after", [("a", {"x": 1})]),
        (f"x<TOOLCALL>[{A}]</TOOLCALL> y", "x y", [("a", {"x": 1})]),
        # tolerated: no brackets, no comma, cut before or within the closing tag, two blocks
        (f"<TOOLCALL>{A}{B}", "", [("a", {"x": 1}), CALL_B]),
        (f"<TOOLCALL>[{A}] </TOOLC", "", [("a", {"x": 1})]),
        (f"<TOOLCALL>[{A}]<TOOLCALL>[{B}]</TOOLCALL>", "", [("a", {"x": 1}), CALL_B]),
        ('<TOOLCALL>[{"name": "a"}]</TOOLCALL>', "", [("a", {})]),
        ('<TOOLCALL>[{"name":"a","arguments":"{\\"x\\": 1}"}]</TOOLCALL>', "", [("a", {"x": 1})]),
        ('<TOOLCALL>[{"name":"a","arguments":{"x":"1\n2"}}]', "", [("a", {"x": "1\n2"})]),
    ],
)
def test_calls_and_text_are_told_apart(text, content, calls):
    assert parse(text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "a < b, <TOOL and <TOOLCAL> are text",
        "<TOOLCALL>",
        "<TOOLCALL>[]</TOOLCALL>",
        '<TOOLCALL>[{"name": "a", "arguments": {"x": 1}',
        '<TOOLCALL>[{"name": "a", "arguments": {"x": oops}}]</TOOLCALL>',
        '<TOOLCALL>[{"name": "a", "arguments": [1]}]</TOOLCALL>',
        '<TOOLCALL>[{"name": "a", "arguments": {"x": NaN}}]</TOOLCALL>',
        '<TOOLCALL>[{"name": "", "arguments": {}}]</TOOLCALL>',
        '<TOOLCALL>[{"name": "\\ud800", "arguments": {}}]</TOOLCALL>',
        "<TOOLCALL>[1, 2]</TOOLCALL>",
        "<TOOLCALL>[{]",
    ],
)
def test_what_is_no_call_comes_back_as_content(text):
    assert parse(text) == (text, [])


def test_calls_before_the_broken_one_stand():
    broken = '{"name": oops}'
    content, calls = parse(f"<TOOLCALL>[{A}, {broken}]</TOOLCALL> end")
    assert calls == [("a", {"x": 1})]
    assert broken in content
    assert content.endswith("</TOOLCALL> end")


def test_text_is_not_held_back_longer_than_needed():
    parser = ToolParser()
    assert parser.feed("one <TOOL").content == "one"
    assert parser.feed("S").content == " <TOOLS"
    assert parser.feed(f" x <TOOLCALL>[{A}").calls[0].name == "a"


def test_half_a_surrogate_pair_stays_an_escape():
    content, calls = parse('<TOOLCALL>[{"name": "a", "arguments": {"x": "\\ud800"}}]</TOOLCALL>')
    assert (content, calls) == ("", [("a", {"x": "\ud800"})])


PARTS = ["<TOOLCALL>", "</TOOLCALL>", "[", "]", A, B, "{", "}", '"', "\\", ", ", " \n", "text", "é"]
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=12).map("".join)


@given(TEXTS, st.data())
@example(f"hi <TOOLCALL>[{A}, {B}]</TOOLCALL> there", None)
def test_every_split_gives_the_same_message(text, data):
    whole = parse(text)
    assert parse(*text) == whole
    if data is not None:
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
        assert parse(*(text[i:j] for i, j in itertools.pairwise([0, *cuts, len(text)]))) == whole


@given(TEXTS)
def test_text_is_never_lost(text):
    """Without a single call the content is the stripped text."""
    content, calls = parse(text)
    if not calls:
        assert content == text.strip()
