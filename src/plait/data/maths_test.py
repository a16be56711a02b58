import os
import shutil

import pytest
from datatrove.data import Document

from plait.data.chunks import count_tokens
from plait.data.maths import clean_texts, cleaned, rendered
from plait.data.steps import Task

needs_lynx = pytest.mark.skipif(
    shutil.which("lynx") is None and not os.environ.get("CI"), reason="lynx is not installed"
)


class Fate(list):
    """A task that notes what is dropped."""

    def __init__(self, tmp_path, **ask):
        super().__init__()
        drop = lambda document, reason: self.append((document.id, reason))  # noqa: E731
        self.task = Task("maths", drop, tmp_path, ask)


def pages(*texts, media_type="text/html"):
    return [
        Document(text, str(number), metadata={"media_type": media_type})
        for number, text in enumerate(texts)
    ]


@needs_lynx
def test_pages_come_out_in_order_and_each_one_once(tmp_path):
    fate = Fate(tmp_path)
    texts = [rf"<p>Page {i}: \(\alpha_{{{i}}}\)</p>" if i % 5 else "<p></p>" for i in range(23)]
    texts[7] = "<p>" + "x " * 6_000_000
    kept = list(rendered(iter(pages(*texts)), fate.task))
    assert [page.text for page in kept] == [
        rf"Page {i}: \(\alpha_{{{i}}}\)" for i in range(23) if i % 5 and i != 7
    ]
    assert dict(fate) == {
        **{str(i): "no_text" for i in range(0, 23, 5)},
        "7": "page_too_large",
    }


@needs_lynx
def test_binary_called_html_does_no_harm(tmp_path):
    fate = Fate(tmp_path)
    noise = bytes(range(256)).decode("latin-1") * 50
    assert len(list(rendered(iter(pages(noise)), fate.task))) + len(fate) == 1


def test_text_needs_no_browser(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    [page] = rendered(iter(pages("a  \r\n$b$", media_type="text/plain")), Fate(tmp_path).task)
    assert page.text == "a\n$b$"


def test_without_a_model_nothing_is_cleaned(tmp_path):
    before = pages("a", "b")
    assert list(cleaned(iter(before), Fate(tmp_path).task)) == before


def test_chunks_are_cleaned_and_merged_back_to_their_pages():
    long = "\n\n".join(f"Theorem {i}. $x_{i}$ is small." for i in range(40))
    seen = []

    def ask(prompts):
        seen.extend(prompts)
        bodies = [prompt.split("The text:\n\n")[1].rstrip("\n") for prompt in prompts]
        return [f"```latex\n{body.replace('small', 'SMALL')}\n```" for body in bodies]

    [first, second] = clean_texts([long, "One is small."], ask, max_tokens=50)
    assert first == long.replace("small", "SMALL")
    assert second == "One is SMALL."
    assert len(seen) > 8
    assert all(count_tokens(prompt.split("The text:")[1]) <= 60 for prompt in seen)


def test_pages_whose_cleaning_fails_are_dropped_with_the_reason(tmp_path):
    def ask(prompts):
        return [
            None
            if "lost" in prompt
            else "EMPTY"
            if "menu" in prompt.split("The text:")[1]
            else "ok"
            for prompt in prompts
        ]

    fate = Fate(tmp_path, clean=ask)
    kept = list(cleaned(iter(pages("good", "lost", "menu")), fate.task))
    assert [(page.id, page.text) for page in kept] == [("0", "ok")]
    assert fate == [("1", "clean_failed"), ("2", "clean_empty")]
