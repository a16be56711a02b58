import asyncio
import itertools
import time

import pytest

from plait.core.endpoint import EndpointSettings
from plait.core.errors import EndpointError
from plait.synth import client as module
from plait.synth.client import Call, Client, Unusable
from plait.synth.replies import ReplyStore
from plait.synth.scripted_test import CLOSE, HANG, Status, asked, completion, scripted


@pytest.fixture
def store(tmp_path):
    return ReplyStore(tmp_path / "replies.sqlite")


def call(text="hello", **more):
    return Call([{"role": "user", "content": text}], 8, **more)


def ask_all(endpoint_url, store, calls, budget_tokens=None, **settings):
    """Return what each of some calls, made at once, gives: replies or exceptions."""
    table = {"url": endpoint_url, "model": "m", "backoff_s": 0.01, "timeout_s": 5, **settings}

    async def run():
        endpoint = EndpointSettings.parse(table, "test")
        async with Client("writer", endpoint, store, budget_tokens) as client:
            tasks = (client.complete(one) for one in calls)
            return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(run())


def test_a_reply_has_text_reason_and_cost(store):
    def script(body):
        assert body["model"] == "m"
        return completion("four", reasoning_content="2 + 2")

    with scripted(script) as endpoint:
        [reply] = ask_all(endpoint.url, store, [call()])
    assert reply[:3] == ("four", "2 + 2", "stop")
    assert (reply.prompt_tokens, reply.answer_tokens) == (10, 2)
    assert store.num_tokens == 12


def test_reasoning_in_tags_is_no_part_of_the_text(store):
    with scripted(lambda _: "<think>\n2 + 2\n</think>\n\nfour") as endpoint:
        [reply] = ask_all(endpoint.url, store, [call()])
    assert reply[:2] == ("four", "2 + 2")


def test_nothing_is_asked_twice(store, tmp_path):
    with scripted(asked) as endpoint:
        calls = [call("a"), call("b"), call("a")]
        first = ask_all(endpoint.url, store, calls)
        assert [reply.text for reply in first] == ["a", "b", "a"]
        assert len(endpoint.calls) == 2
        store.close()
        again = ReplyStore(tmp_path / "replies.sqlite")
        assert ask_all(endpoint.url, again, calls) == first
        assert len(endpoint.calls) == 2
        assert again.calls == {"writer": 2}
        # Another sample, another schema: another call, with another seed.
        ask_all(endpoint.url, again, [call("a", sample="2"), call("a", schema={"type": "object"})])
        assert len(endpoint.calls) == 4
        assert len({body["seed"] for body in endpoint.calls}) == 4


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("way", "sent"),
    [
        ("json_schema", {"json_schema": {"name": "answer", "schema": SCHEMA}}),
        ("json_object", {"schema": SCHEMA}),
        ("prompt", None),
    ],
)
def test_a_form_is_asked_for_in_the_server_s_way(store, way, sent):
    with scripted(asked) as endpoint:
        ask_all(endpoint.url, store, [call(schema=SCHEMA)], json_answers=way)
        assert endpoint.calls[0].get("response_format") == (sent and {"type": way, **sent})


def test_calls_in_flight_are_bounded(store):
    with scripted(asked, latency_s=0.02) as endpoint:
        ask_all(endpoint.url, store, [call(str(i)) for i in range(30)], max_in_flight=4)
        assert endpoint.most_in_flight == 4


@pytest.mark.parametrize(
    "trouble",
    [CLOSE, Status(500), Status(503, "busy", "Retry-After: 0\r\n"), Status(200, "<html>"), {}],
)
def test_passing_trouble_is_tried_again(store, trouble):
    numbers = itertools.count()
    with scripted(lambda _: trouble if next(numbers) < 2 else "at last") as endpoint:
        [reply] = ask_all(endpoint.url, store, [call()])
        assert reply.text == "at last"
        assert len(endpoint.calls) == 3


@pytest.mark.parametrize(
    ("trouble", "reason", "tries"),
    [
        (CLOSE, "broken_connection", 3),
        (HANG, "timed_out", 3),
        (Status(500, "oops"), "server_error: status 500, 'oops'", 3),
        (Status(200, "<html>"), "garbage", 3),
        ({"choices": []}, "garbage", 3),
        (completion("four", reasoning_content="\ud83d"), "garbage", 3),
        (Status(400, "too long"), "rejected: status 400, 'too long'", 1),
    ],
)
def test_lasting_trouble_costs_the_call_its_answer(store, trouble, reason, tries):
    def script(body):
        return trouble if asked(body) == "bad" else "good"

    with scripted(script) as endpoint:
        longest = {"timeout_s": 0.5} if trouble is HANG else {}
        bad, good = ask_all(
            endpoint.url, store, [call("bad"), call("good")], num_tries=3, **longest
        )
        assert isinstance(bad, Unusable)
        assert reason in str(bad)
        assert good.text == "good"
        assert [asked(body) for body in endpoint.calls].count("bad") == tries


def test_a_server_that_is_not_there_stops_everything(store):
    with scripted(asked) as endpoint:
        url = endpoint.url
    [error] = ask_all(url, store, [call()], num_tries=2)
    assert isinstance(error, EndpointError)
    assert "unreachable" in str(error)
    assert "run the same command" in str(error)


@pytest.mark.parametrize(
    ("status", "message"), [(401, r"its key \(api_key_env\)"), (404, "its model or address")]
)
def test_a_wrong_key_or_model_stops_everything_at_once(store, status, message):
    with scripted(lambda _: Status(status, "no")) as endpoint:
        [error] = ask_all(endpoint.url, store, [call()])
        assert len(endpoint.calls) == 1
    with pytest.raises(EndpointError, match=message):
        raise error


def test_an_endpoint_that_always_fails_is_given_up(store, monkeypatch):
    monkeypatch.setattr(module, "FAILURES_THAT_STOP", 5)
    with scripted(lambda _: Status(400, "bad")) as endpoint:
        calls = [call(str(i)) for i in range(5)]
        results = ask_all(endpoint.url, store, calls, max_in_flight=1)
    assert [type(error) for error in results] == [Unusable] * 4 + [EndpointError]
    assert "5 calls in a row failed" in str(results[-1])


def test_a_spent_budget_asks_no_more_but_keeps_what_was_answered(store):
    with scripted(lambda _: "x" * 39) as endpoint:  # 10 + 10 tokens a call
        calls = [call(str(i)) for i in range(5)]
        results = ask_all(endpoint.url, store, calls, budget_tokens=50, max_in_flight=1)
        reasons = [getattr(result, "reason", None) for result in results]
        assert reasons == [None, None, None, "over_budget", "over_budget"]
        again = ask_all(endpoint.url, store, calls[:3], budget_tokens=50)
        assert [reply.text for reply in again] == ["x" * 39] * 3
        assert len(endpoint.calls) == 3


def test_a_busy_server_says_when_to_come_again(store):
    numbers = itertools.count()

    def script(_):
        return Status(429, "busy", "Retry-After: 1\r\n") if next(numbers) == 0 else "now"

    with scripted(script) as endpoint:
        started = time.monotonic()
        [reply] = ask_all(endpoint.url, store, [call()])
        assert reply.text == "now"
        assert time.monotonic() - started > 0.9
