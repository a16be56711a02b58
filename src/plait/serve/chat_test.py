"""What a message is made of, however its output was cut into pieces."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.engine.request import Completion, Delta
from plait.serve.chat import MessageReader

CALL = '<TOOLCALL>[{"name": "weather", "arguments": {"unit": "C"}}]</TOOLCALL>'
DONE = Completion(
    prompt_ids=[1],
    token_ids=[1],
    logprobs=None,
    forced=[False],
    text="",
    reasoning="",
    content="",
    finish_reason="stop",
    num_reasoning_tokens=0,
    num_closing_tags=1,
)


def read(
    deltas: list[Delta], *, finds_calls: bool = True, completion: Completion = DONE
) -> tuple[str, str, list[str], str]:
    """Return trace, content, names of calls and finish reason."""
    reader = MessageReader(finds_calls=finds_calls)
    pieces = [
        reader.take(delta) for delta in [*deltas[:-1], deltas[-1]._replace(completion=completion)]
    ]
    return (
        "".join(piece.reasoning for piece in pieces),
        "".join(piece.content for piece in pieces),
        [call.name for piece in pieces for call in piece.calls],
        reader.finish_reason(completion),
    )


@pytest.mark.parametrize(
    ("reasoning", "content", "message"),
    [
        ("so", "hello", ("so", "hello", [], "stop")),
        ("so", f"hello {CALL}", ("so", "hello", ["weather"], "tool_calls")),
        # a call in the trace that nothing follows is the answer
        (f"so {CALL}", "", ("so ", "", ["weather"], "tool_calls")),
        # one that an answer follows was only thought of
        (f"so {CALL}", "hello", (f"so {CALL}", "hello", [], "stop")),
        (f"so {CALL}", CALL, (f"so {CALL}", "", ["weather"], "tool_calls")),
        ("a <TOOLCALL>[{", "", ("a <TOOLCALL>[{", "", [], "stop")),
        ("is 1 < 2 <TOOL", "", ("is 1 < 2 <TOOL", "", [], "stop")),
    ],
)
def test_calls_are_found_in_the_answer_and_at_the_end_of_an_open_trace(reasoning, content, message):
    assert read([Delta(reasoning, content)]) == message


def test_without_tools_a_call_is_text_and_a_cut_answer_stays_cut():
    assert read([Delta("", CALL)], finds_calls=False) == ("", CALL, [], "stop")
    cut = replace(DONE, finish_reason="length")
    assert read([Delta("", CALL)], completion=cut) == ("", "", ["weather"], "length")


PARTS = st.lists(st.sampled_from(["so ", CALL, "<TOOL", "CALL>", "[", "é", "\n"]), max_size=6)


@given(PARTS.map("".join), PARTS.map("".join), st.data())
def test_every_stream_says_what_the_whole_answer_says(reasoning, content, data):
    def pieces(text: str) -> list[str]:
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=4).map(sorted))
        return [text[i:j] for i, j in itertools.pairwise([0, *cuts, len(text)])]

    whole = read([Delta(reasoning, content)])
    stream = [Delta(reasoning=text) for text in pieces(reasoning)]
    stream += [Delta(content=text) for text in pieces(content)]
    assert read(stream) == whole
