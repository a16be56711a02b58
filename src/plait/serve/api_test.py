"""The server as OpenAI's own client sees it, over a real socket."""

import json
import re
from enum import Enum

import httpx2
import openai
from pydantic import BaseModel, Field

from plait.engine.text import decode
from plait.serve.conftest import HELLO, MODEL
from plait.serve.forms import chat_grammar
from plait.serve.schema import ChatRequest

NO_THINK = {"chat_template_kwargs": {"enable_thinking": False}}
SHORT = {"max_thinking_tokens": 4, "budget_rule": "hard"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"unit": {"enum": ["C", "F"]}},
                "required": ["unit"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "forecast")
]


def ask(client: openai.OpenAI, messages=HELLO, max_tokens=24, **fields):
    return client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=max_tokens, **fields
    )


def joined(chunks) -> tuple[str, str, dict[int, list], str | None]:
    """Return trace, content, calls by index and the finish reason of a stream."""
    reasoning = content = ""
    calls: dict[int, list] = {}
    reason = None
    for chunk in chunks:
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning", None) or ""
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                calls.setdefault(call.index, []).append(call)
            assert reason is None
            reason = choice.finish_reason
    return reasoning, content, calls, reason


# ---- chat ----


def test_a_chat_thinks_within_its_budget_and_answers(client):
    answer = ask(client, extra_body={"max_thinking_tokens": 8, "budget_rule": "hard"})
    [choice] = answer.choices
    assert choice.finish_reason in ("stop", "length")
    assert choice.message.reasoning
    assert choice.message.reasoning == choice.message.reasoning_content
    assert choice.message.content
    assert answer.usage.completion_tokens_details.reasoning_tokens == 8
    assert answer.usage.total_tokens == (
        answer.usage.prompt_tokens + answer.usage.completion_tokens
    )
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_a_stream_says_what_the_whole_answer_says(client):
    for fields in ({"extra_body": SHORT}, {"extra_body": NO_THINK, "stop": ["a", "e"]}):
        whole = ask(client, seed=3, **fields)
        [message] = [choice.message for choice in whole.choices]
        chunks = list(
            ask(client, seed=3, stream=True, stream_options={"include_usage": True}, **fields)
        )
        reasoning, content, _, reason = joined(chunks)
        assert (reasoning, content) == (getattr(message, "reasoning", ""), message.content)
        assert reason == whole.choices[0].finish_reason
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert chunks[-1].usage.completion_tokens_details == whole.usage.completion_tokens_details


def test_usage_can_come_with_every_chunk(client):
    options = {"continuous_usage_stats": True}
    chunks = list(ask(client, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert counts == sorted(counts)
    assert counts[-1] == 24
    assert len(set(counts)) > 15


def test_several_choices_follow_their_seeds(client):
    first = [
        choice.message.content for choice in ask(client, n=3, seed=5, extra_body=NO_THINK).choices
    ]
    again = [
        choice.message.content for choice in ask(client, n=3, seed=5, extra_body=NO_THINK).choices
    ]
    second = ask(client, seed=6, extra_body=NO_THINK).choices[0].message.content
    assert first == again
    assert len(set(first)) == 3
    assert second == first[1]


def test_a_quarter_of_the_tokens_is_kept_for_the_answer(client):
    usage = ask(client, max_tokens=64).usage
    assert usage.completion_tokens_details.reasoning_tokens <= 48
    usage = ask(client, max_tokens=40, extra_body={"min_answer_tokens": 30}).usage
    assert usage.completion_tokens_details.reasoning_tokens <= 10


def test_thinking_is_switched_off_in_three_ways(client):
    for fields in (
        {"extra_body": NO_THINK},
        {"reasoning_effort": "none"},
        {"messages": [{"role": "user", "content": "hello /no_think"}]},
    ):
        answer = ask(client, **fields)
        assert getattr(answer.choices[0].message, "reasoning", None) is None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    hidden = ask(client, extra_body={"include_reasoning": False, "max_thinking_tokens": 4})
    assert getattr(hidden.choices[0].message, "reasoning", None) is None
    assert hidden.usage.completion_tokens_details.reasoning_tokens > 0


def test_log_probabilities_of_a_chat(client):
    answer = ask(client, logprobs=True, top_logprobs=3, temperature=0, extra_body=NO_THINK)
    entries = answer.choices[0].logprobs.content
    assert len(entries) > 10
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob <= entry.top_logprobs[0].logprob <= 0
    text = decode(b"".join(bytes(entry.bytes) for entry in entries), strip=True)
    assert text == answer.choices[0].message.content
    streamed = [
        entry.token
        for chunk in ask(client, logprobs=True, temperature=0, extra_body=NO_THINK, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert streamed == [entry.token for entry in entries]


def test_logit_bias_decides(client, tiny):
    [token] = tiny.engine.tokenizer.encode("z")
    answer = ask(client, max_tokens=5, logit_bias={str(token): 100}, extra_body=NO_THINK)
    assert answer.choices[0].message.content == "zzzzz"


def test_a_conversation_goes_on_in_whatever_shape_it_comes_back(client):
    answer = ask(client, extra_body={"max_thinking_tokens": 4}).choices[0].message
    messages = [
        {"role": "developer", "content": "Be brief."},
        *HELLO,
        answer.to_dict(),
        {
            "role": "user",
            "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "?"}],
        },
    ]
    assert ask(client, messages=messages).choices[0].message is not None


def test_a_final_message_is_continued(client, tiny):
    messages = [*HELLO, {"role": "assistant", "content": "one two"}]
    body = {"continue_final_message": True, "return_token_ids": True, **NO_THINK}
    answer = ask(client, messages=messages, extra_body=body)
    assert tiny.engine.tokenizer.decode(answer.prompt_token_ids).endswith("one two")


# ---- tools ----


def test_a_required_call_is_made(client):
    answer = ask(client, tools=TOOLS, tool_choice="required", max_tokens=400, extra_body=SHORT)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    for call in choice.message.tool_calls:
        assert call.function.name in ("weather", "forecast")
        assert json.loads(call.function.arguments)["unit"] in ("C", "F")
    assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)


def test_a_named_call_is_made_alone_and_streams_its_name_once(client):
    named = {"type": "function", "function": {"name": "forecast"}}
    whole = ask(client, tools=TOOLS, tool_choice=named, seed=2, max_tokens=200, extra_body=SHORT)
    [call] = whole.choices[0].message.tool_calls
    stream = ask(
        client,
        tools=TOOLS,
        tool_choice=named,
        seed=2,
        max_tokens=200,
        extra_body=SHORT,
        stream=True,
    )
    _, content, calls, reason = joined(stream)
    assert (content, reason, list(calls)) == ("", "tool_calls", [0])
    first, *rest = calls[0]
    assert first.function.name == "forecast"
    assert first.id
    assert all(part.id is None and part.function.name is None for part in rest)
    assert "".join(part.function.arguments for part in calls[0]) == call.function.arguments


def test_results_of_calls_go_back_in_the_order_of_the_calls(client, tiny):
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        for i in range(2)
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "second"},
        {"role": "tool", "tool_call_id": "c0", "content": "first"},
    ]
    answer = ask(client, messages=messages, tools=TOOLS, extra_body={"return_token_ids": True})
    prompt = tiny.engine.tokenizer.decode(answer.prompt_token_ids)
    assert "<TOOL_RESPONSE>[first, second]</TOOL_RESPONSE>" in prompt
    assert '<TOOLCALL>[{"name": "weather", "arguments": {}}' in prompt


def test_tool_choice_none_hides_the_tools(client, tiny):
    for choice, shown in (("none", False), ("auto", True)):
        answer = ask(client, tools=TOOLS, tool_choice=choice, extra_body={"return_token_ids": True})
        assert ("forecast" in tiny.engine.tokenizer.decode(answer.prompt_token_ids)) is shown


# ---- form of the answer ----


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Thing(BaseModel):
    color: Color
    count: int = Field(ge=0, le=99)
    whole: bool


def test_an_answer_is_parsed_into_a_pydantic_model(client):
    answer = client.chat.completions.parse(
        model=MODEL, messages=HELLO, response_format=Thing, max_tokens=200, extra_body=SHORT
    )
    assert isinstance(answer.choices[0].message.parsed, Thing)
    assert answer.choices[0].message.reasoning


def test_forms_of_structured_outputs(client):
    def content(**form) -> str:
        body = {"structured_outputs": form, **NO_THINK}
        return ask(client, max_tokens=60, extra_body=body).choices[0].message.content

    assert re.fullmatch("[ab]{3}-[0-9]", content(regex="[ab]{3}-[0-9]"))
    assert content(choice=["yes.", "no (really)\n!"]) in ("yes.", "no (really)\n!")
    assert content(grammar='start: "x" "y"+ "z"').startswith("xy")
    assert json.loads(content(json='{"enum": [1, "two"]}')) in (1, "two")
    [text] = client.completions.create(
        model=MODEL, prompt="a", extra_body={"structured_outputs": {"regex": "q{4}"}}
    ).choices
    assert text.text == "qqqq"


def test_json_and_tools_may_be_offered_together(client):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 7}}}
    message = (
        ask(client, tools=TOOLS, response_format=form, max_tokens=200, extra_body=SHORT)
        .choices[0]
        .message
    )
    assert message.content == "7" or message.tool_calls


def test_json_beside_tools_has_no_free_white_space(tiny):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for tools in (None, TOOLS):
        request = ChatRequest(messages=HELLO, tools=tools, response_format=form)
        matcher = tiny.engine._vocabulary.grammars.matcher(chat_grammar(request))
        brace, line = (tiny.engine.tokenizer.encode_plain(text)[0] for text in "{\n")
        matcher.consume(brace)
        assert not matcher.allowed()[line]


# ---- tokens and state ----


def test_tokens_there_and_back(tiny):

    with httpx2.Client(base_url=tiny.url) as http:
        text = http.post("/tokenize", json={"prompt": "héllo", "return_token_strs": True}).json()
        assert text["count"] == len(text["tokens"]) == len(text["token_strs"])
        back = http.post("/detokenize", json={"tokens": text["tokens"]}).json()
        assert back == {"prompt": "héllo"}
        chat = http.post("/tokenize", json={"messages": HELLO}).json()
        assert chat["tokens"] == tiny.engine.tokenizer.encode_conversation(HELLO)
        assert chat["max_model_len"] == tiny.engine.max_context


def test_what_is_served_and_how_it_is(client, tiny):

    [model] = client.models.list().data
    assert (model.id, model.max_model_len) == (MODEL, tiny.engine.max_context)
    for path in ("/health", "/v1/health/live", "/v1/health/ready", "/version"):
        assert httpx2.get(tiny.url + path).status_code == 200
    metrics = httpx2.get(tiny.url + "/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "prompt_tokens_total",
        "generation_tokens_total", "reasoning_tokens_total", "forced_closes_total",
        "prefix_cache_hits_total", "num_preemptions_total", "requests_total",
        "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_sum",
        "e2e_request_latency_seconds_count",
    ):  # fmt: skip
        assert re.search(rf"^plait_{name}[ {{]", metrics, re.MULTILINE), name
