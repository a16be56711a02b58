import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from plait.core.errors import ConfigError, DataError, EndpointError
from plait.synth.scripted_test import HANG, Status, asked, completion, scripted
from plait.synth.stage import AnySynthSettings, write

WORDS = "The sum of two even numbers is even because each is twice a whole number. "


def pages(*texts):
    return lambda: ({"id": str(i), "text": text, "metadata": {}} for i, text in enumerate(texts))


def settings(url, generator="rephrase", max_in_flight=64, **more):
    endpoint = {"url": url, "model": "m", "backoff_s": 0.01, "num_tries": 2, "timeout_s": 10}
    endpoint["max_in_flight"] = max_in_flight
    table = {
        "generator": generator,
        "category": "maths",
        "endpoints": {"default": endpoint},
        **({"style": "wikipedia", "min_tokens": 5} if generator == "rephrase" else {}),
        **more,
    }
    return AnySynthSettings.parse(table, "recipe")


def rows(file: Path):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_item_is_kept_or_dropped_for_a_reason(sources, tmp_path):
    # Six pages, each with its own fate; the texts are told apart by their last word.
    fates = {
        "fine": lambda text: text,
        "refused": lambda _: "I'm sorry, but I can't help with that.",
        "censored": lambda _: completion("x", finish_reason="content_filter"),
        "cut": lambda text: completion(text, finish_reason="length"),
        "empty": lambda _: " \n",
        "short": lambda _: "Too few words.",
        "rejected": lambda _: Status(400, "too long"),
    }

    def script(body):
        text = asked(body)
        return fates[text.split()[-1]](WORDS)

    found = sources._replace(documents=pages(*(f"{WORDS}{name}" for name in fates)))
    with scripted(script) as endpoint:
        metrics = write(settings(endpoint.url, num_asks=2, validation_share=0), found, tmp_path)
        calls = Counter(asked(body).split()[-1] for body in endpoint.calls)
    assert calls == {name: 1 if name in ("fine", "rejected") else 2 for name in fates}
    [document] = rows(tmp_path / "documents/train/maths.jsonl")
    assert document["text"] == WORDS.strip()
    assert document["id"] == "0#0/wikipedia"
    funnel = json.loads((tmp_path / "funnel.json").read_text())
    assert funnel["steps"]["documents"] == {"items_in": 7, "items_kept": 7, "dropped": {}}
    assert funnel["steps"]["rephrased"] == {
        "items_in": 7,
        "items_kept": 1,
        "dropped": {"refused": 2, "cut_off": 1, "empty_answer": 1, "too_short": 1, "rejected": 1},
    }
    dropped = {
        row["id"].partition("#")[0]: row["reason"] for row in rows(tmp_path / "dropped.jsonl")
    }
    assert dropped["6"] == "rejected"
    assert len(dropped) == metrics["items_dropped"] == 6


def test_the_order_of_answers_does_not_show(sources, tmp_path):
    found = sources._replace(documents=pages(*(f"{WORDS} {i}" for i in range(40))))

    def script(body):
        time.sleep(0.001 * (hash(asked(body)) % 3))
        return WORDS + asked(body).split()[-1]

    for name in ("a", "b"):
        fresh = found._replace(cache=tmp_path / name / "cache")
        with scripted(script, latency_s=0.01) as endpoint:
            write(settings(endpoint.url), fresh, tmp_path / name)
    written = [(tmp_path / n / "documents/train/maths.jsonl").read_bytes() for n in ("a", "b")]
    assert written[0] == written[1]
    ends = [int(row["text"].split()[-1]) for row in map(json.loads, written[0].splitlines())]
    held_out = rows(tmp_path / "a/documents/validation/maths.jsonl") if len(ends) < 40 else []
    assert sorted([*ends, *(int(row["text"].split()[-1]) for row in held_out)]) == list(range(40))
    assert ends == sorted(ends)


def test_prices_become_a_cost(sources, tmp_path):
    found = sources._replace(documents=pages(WORDS))
    with scripted(lambda _: WORDS) as endpoint:
        priced = settings(endpoint.url).model_dump()
        priced["endpoints"]["default"] |= {"prompt_price": 2.0, "answer_price": 10.0}
        metrics = write(AnySynthSettings.parse(priced, "recipe"), found, tmp_path)
    answered = len(WORDS) // 4 + 1
    assert metrics["cost"] == pytest.approx((10 * 2 + answered * 10) / 1e6)


def test_what_is_over_budget_is_counted(sources, tmp_path):
    found = sources._replace(documents=pages(*(f"{WORDS} {i}" for i in range(6))))
    with scripted(lambda _: WORDS) as endpoint:
        bounded = settings(endpoint.url, max_in_flight=1, budget_tokens=60)
        write(bounded, found, tmp_path)
        num_calls = len(endpoint.calls)
        funnel = json.loads((tmp_path / "funnel.json").read_text())
        step = funnel["steps"]["rephrased"]
        assert step["dropped"]["over_budget"] == 6 - num_calls > 0
        # The budget is that of all runs together.
        write(bounded, found, tmp_path)
        assert len(endpoint.calls) == num_calls


def test_nothing_kept_is_an_error_that_says_why(sources, tmp_path):
    found = sources._replace(documents=pages(WORDS))
    with (
        scripted(lambda _: "no") as endpoint,
        pytest.raises(
            DataError, match=r"nothing was kept: .*; rephrased: 1 in, 0 kept, 1 too_short"
        ),
    ):
        write(settings(endpoint.url), found, tmp_path)
    assert not (tmp_path / "documents").exists()
    with scripted(asked) as endpoint, pytest.raises(DataError, match="0 in, 0 kept"):
        write(settings(endpoint.url), sources, tmp_path)


def test_a_stopped_stage_goes_on_where_it_stopped(sources, tmp_path):
    found = sources._replace(documents=pages(*(f"{WORDS} {i}" for i in range(6))))

    def script(body):
        return WORDS if len(endpoint.calls) <= 3 else Status(401, "key expired")

    with scripted(script) as endpoint:
        chosen = settings(endpoint.url, max_in_flight=1)
        with pytest.raises(EndpointError, match="refuses its key"):
            write(chosen, found, tmp_path)
        assert not list(tmp_path.rglob("*.jsonl"))
        endpoint.script = lambda _: WORDS
        endpoint.calls.clear()
        write(chosen, found, tmp_path)
        assert len(endpoint.calls) == 3
    assert len(list(tmp_path.rglob("*.partial"))) == 0


KILLED = """
import sys
from pathlib import Path
from plait.synth.settings import Sources
from plait.synth.stage import AnySynthSettings, write
url, out = sys.argv[1], Path(sys.argv[2])
texts = (f"{sys.argv[3]} {i}" for i in range(20))
documents = lambda: ({"id": text, "text": text, "metadata": {}} for text in texts)
words = lambda text: len(text.split())
sources = Sources(documents, lambda: 20, words, str, lambda *_: None, None, out / "cache")
endpoint = {"url": url, "model": "m", "max_in_flight": 4}
table = {"generator": "rephrase", "style": "list", "min_tokens": 5, "category": "c",
         "validation_share": 0, "endpoints": {"default": endpoint}}
write(AnySynthSettings.parse(table, "recipe"), sources, out)
"""


def test_a_killed_run_repeats_no_finished_call(tmp_path):
    """SIGKILL when ten calls are answered and four wait: the second run asks for the other ten."""
    numbers = Counter()

    def script(body):
        numbers[asked(body).split()[-1]] += 1
        return HANG if numbers.total() in range(11, 15) else WORDS

    with scripted(script) as endpoint:
        command = [sys.executable, "-c", KILLED, endpoint.url, str(tmp_path), WORDS]
        first = subprocess.Popen(command, env={**os.environ})
        until = time.monotonic() + 30
        while numbers.total() < 14 and time.monotonic() < until and first.poll() is None:
            time.sleep(0.02)
        time.sleep(0.1)  # the tenth answer is on its way to the file
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert numbers.total() == 14
        hung = 4
        subprocess.run(command, check=True, timeout=60)
        assert numbers.total() == 20 + hung
        assert Counter(numbers.values()) == {1: 16, 2: 4}
    written = rows(tmp_path / "documents/train/c.jsonl")
    assert [row["id"].partition("#")[0].split()[-1] for row in written] == list(map(str, range(20)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"generator": "stemm"}, "no generator 'stemm'; did you mean 'stem'"),
        ({"generator": "stem", "stile": 1}, "unknown key 'stile'"),
        ({"generator": "stem", "endpoints": {}}, "needs one for the role 'writer', or 'default'"),
        (
            {"generator": "rephrase", "style": "list", "endpoints": {"wirter": {}}},
            r"key 'endpoints\.wirter\.url' is required",
        ),
        (
            {"generator": "stem", "endpoints": {"wirter": {"url": "http://x/v1", "model": "m"}}},
            "no role 'wirter'; did you mean 'writer'",
        ),
        (
            {"generator": "dialogue", "styles": ["opera"]},
            "key 'styles': no 'opera'; allowed: debate",
        ),
        (
            {"generator": "translate", "languages": ["xx"]},
            "key 'languages': no 'xx'; allowed: ar, zh",
        ),
        ({"generator": "stem", "files": ["./none.jsonl"]}, "does not exist"),
    ],
)
def test_wrong_settings_are_named(table, message):
    endpoints = {"default": {"url": "http://127.0.0.1:1/v1", "model": "m"}}
    with pytest.raises(ConfigError, match=message):
        AnySynthSettings.parse(
            {"category": "c", "endpoints": endpoints, **table}, "recipe"
        ).files_read()
