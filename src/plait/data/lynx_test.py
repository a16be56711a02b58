import os
import shutil
import time

import pytest

from plait.core.errors import ConfigError
from plait.data import lynx
from plait.data.lynx import Limits, render

needs_lynx = pytest.mark.skipif(
    shutil.which("lynx") is None and not os.environ.get("CI"), reason="lynx is not installed"
)


def script(tmp_path, body):
    """Write a program that stands for a lynx that does not behave."""
    path = tmp_path / "lynx"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@needs_lynx
def test_formulas_code_and_tables_keep_their_shape():
    html = (
        "<html><head><title>T</title></head><body><h1>Über</h1>"
        r"<p>Let \(\alpha_1 < \beta\) and $$\frac{a}{b}$$.</p>"
        "<pre>def f(x):\n    return x ** 2</pre>"
        "<table><tr><td>1</td><td>2</td></tr></table></body></html>"
    )
    text, fault = render(html)
    assert fault is None
    assert "Über" in text
    assert r"Let \(\alpha_1 < \beta\) and $$\frac{a}{b}$$." in text
    assert "def f(x):\n    return x ** 2" in text
    assert "1 2" in text


@needs_lynx
@pytest.mark.parametrize("length", [100, 1_000, 30_000])
def test_a_long_formula_loses_nothing_but_blanks(length):
    formula = " + ".join(rf"\gamma_{{{i}}}" for i in range(length))
    text, _ = render(f"<p>{formula}</p>")
    assert text.split() == formula.split()


@needs_lynx
def test_an_empty_page_has_no_text():
    assert render("<html></html>").fault == "no_text"


def test_a_huge_page_is_not_read(tmp_path):
    assert render("x" * 100, Limits(max_input_bytes=99), lynx="/nowhere").fault == "page_too_large"


def test_an_endless_lynx_is_ended(tmp_path):
    started = time.monotonic()
    endless = script(tmp_path, "sleep 600")
    assert render("x", Limits(max_s=0.3), lynx=endless).fault == "render_timeout"
    assert time.monotonic() - started < 10


def test_an_endless_answer_is_cut_off(tmp_path):
    babbling = script(tmp_path, "while true; do echo more and more and more; done")
    limits = Limits(max_output_bytes=10_000)
    assert render("x", limits, lynx=babbling).fault == "render_too_long"


def test_a_failing_lynx_is_a_reason(tmp_path):
    assert render("x", lynx=script(tmp_path, "echo half; exit 3")).fault == "render_failed"


def test_a_greedy_lynx_gets_no_more_memory(tmp_path):
    greedy = script(tmp_path, "read line; exec python3 -c 'bytearray(2 ** 31)'")
    assert render("x\n", lynx=greedy).fault == "render_failed"


def test_a_missing_lynx_is_one_clear_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    lynx.find_lynx.cache_clear()
    with pytest.raises(ConfigError, match="apt-get install lynx"):
        render("<p>x</p>")
    lynx.find_lynx.cache_clear()
