"""The chat page in a real browser, against a real server."""

import json
import os
import re
import time
from pathlib import Path

import httpx2
import pytest
from browser import Browser, find_chromium

from plait.serve.conftest import serving, tiny_engine

pytestmark = pytest.mark.skipif(
    find_chromium() is None and not os.environ.get("CI"),
    reason="needs Chromium: apt install chromium (make test does, where it can)",
)
SCREENSHOT = Path(__file__).parent.parent / "build" / "page.png"
"""Kept for a look; not in git."""
TOOL = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"unit": {"enum": ["C", "F"]}},
        "required": ["unit"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def server():
    with serving(tiny_engine(max_num_seqs=4)) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    assert program, "CI must have Chromium: the page is not tested without it"
    with Browser(program) as browser:
        yield browser


@pytest.fixture
def page(server, browser):
    browser.open(server.url)
    browser.wait_for("document.querySelector('#model')?.textContent.includes('2,048')")
    return browser


def last(selector: str) -> str:
    return f"[...document.querySelectorAll('.assistant {selector}')].at(-1)"


def say(page: Browser, text: str) -> None:
    page.type("#input", text)
    page.press_enter()


def set_value(page: Browser, selector: str, value: object) -> None:
    page.evaluate(
        f"(e => {{ e.value = {json.dumps(str(value))}; e.dispatchEvent(new Event('input')); }})"
        f"(document.querySelector('{selector}'))"
    )


def test_the_trace_streams_within_its_budget_and_folds(page):
    set_value(page, "#budget", 4)
    assert page.evaluate("document.querySelector('#budget-value').textContent") == "64 tokens"
    set_value(page, "#max-tokens", 200)
    say(page, "hello")
    page.wait_for(f"{last('.trace.live .text')}?.textContent.length > 5")
    growing = page.evaluate(f"{last('.trace .text')}.textContent.length")
    page.wait_for(f"{last('.trace .text')}.textContent.length > {growing}")
    page.wait_for(f"{last('.note')}.textContent.includes('tokens/s')")
    assert page.evaluate(f"{last('.trace')}.open")
    page.wait_for("!document.querySelector('#send').hidden")
    assert not page.evaluate(f"{last('.trace')}.open")
    counted = page.evaluate(f"{last('.trace .count')}.textContent")
    assert counted.endswith(" of 64 tokens")
    assert 64 <= int(counted.split()[0]) <= 71
    assert page.evaluate(f"{last('.turn > .text, .text')}.textContent.length") > 0
    assert "tokens/s" in page.evaluate(f"{last('.note')}.textContent")
    assert page.evaluate("messages.length") == 2


def test_it_fits_a_phone_and_needs_no_other_host(server, browser):
    browser.open(server.url, width=390, height=844)
    browser.wait_for("document.querySelector('#model')?.textContent.includes('2,048')")
    set_value(browser, "#budget", 8)
    set_value(browser, "#max-tokens", 300)
    say(browser, "hello " * 20)
    browser.wait_for(f"{last('.trace.live .text')}?.textContent.length > 100")
    SCREENSHOT.parent.mkdir(exist_ok=True)
    browser.screenshot(SCREENSHOT)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    inside = "e => { const r = e.getBoundingClientRect(); return r.left >= 0 && r.right <= 390; }"
    found = "[...document.querySelectorAll('button, input, textarea, .turn')]"
    assert browser.evaluate(f"{found}.filter(e => e.offsetParent).every({inside})")
    hosts = (
        "new Set(performance.getEntriesByType('resource').map(each => new URL(each.name).origin))"
    )
    assert browser.evaluate(f"[...{hosts}]") == [server.url]
    browser.click("#stop")
    browser.wait_for("!document.querySelector('#send').hidden")


def num_cancelled(url: str) -> float:
    text = httpx2.get(f"{url}/metrics").text
    found = re.search(r'plait_requests_total\{finish_reason="cancelled"\} (\S+)', text)
    return float(found[1]) if found else 0.0


def wait_until_idle(server) -> None:
    deadline = time.monotonic() + 20
    while server.worker.num_open and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.worker.num_open == 0


def test_stop_ends_the_answer_and_frees_the_slot(page, server):
    wait_until_idle(server)  # what an earlier test stopped may not be counted yet
    before = num_cancelled(server.url)
    say(page, "hello")
    page.wait_for(f"{last('.trace .text')}?.textContent.length > 5")
    page.click("#stop")
    page.wait_for(f"{last('.note')}?.textContent.startsWith('stopped')")
    page.wait_for("!document.querySelector('#send').hidden")
    wait_until_idle(server)
    # It did not just come to its own end meanwhile.
    assert num_cancelled(server.url) == before + 1


def test_without_thinking_there_is_no_trace(page):
    page.click("#thinking")
    set_value(page, "#max-tokens", 20)
    say(page, "hello")
    page.wait_for(f"{last('.note')}?.textContent.includes('20 tokens')")
    assert page.evaluate(f"{last('.trace')} === undefined")


def test_a_call_is_shown_answered_and_sent_back(page):
    page.click("#thinking")
    page.click("#toggle-settings")
    set_value(page, "#tools", json.dumps([TOOL]))
    set_value(page, "#tool-choice", "required")
    set_value(page, "#max-tokens", 500)
    say(page, "hello")
    page.wait_for(f"{last('.call header')}?.textContent === 'weather'")
    while page.evaluate("document.querySelectorAll('.answer').length"):
        set_value(page, "#tool-choice", "auto")
        set_value(page, "#max-tokens", 10)
        page.type(".answer textarea", "21 degrees")
        page.click(".answer button")
    page.wait_for("messages.length > 3 && !document.querySelector('#send').hidden")
    roles = page.evaluate("messages.map(message => message.role)")
    assert roles[:3] == ["user", "assistant", "tool"]
    assert page.evaluate("messages[2].tool_call_id === messages[1].tool_calls[0].id")


def test_mistakes_are_shown(page):
    set_value(page, "#tools", "[not JSON")
    say(page, "hello")
    page.wait_for("document.querySelector('#tools-error').textContent.includes('not valid JSON')")
    set_value(page, "#tools", "")
    set_value(page, "#temperature", -1)
    say(page, "hello again")
    page.wait_for(f"{last('.problem')}?.textContent.includes('temperature = -1')")
