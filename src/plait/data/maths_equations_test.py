"""Ground truth for rendering: the LaTeX commands of real pages, counted before and after.

The pages are Sage's reference manual, out of its Debian package. What is in them is counted by the
standard library's HTML parser, which shares nothing with what is tested.
"""

import collections
import html.parser
import itertools
import random
import re
import shutil

import pytest

from plait.data.debian import download, package_pages
from plait.data.lynx import render
from plait.data.maths_html import with_latex
from plait.data.pages import Pattern

COMMAND = re.compile(r"\\(?:[a-zA-Z]+|[()\[\]{}])")


class VisibleText(html.parser.HTMLParser):
    """Gathers the text of a page's body, and the formulas in scripts."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts = []
        self.skipping = False
        self.in_body = False

    def handle_starttag(self, tag, attrs):
        self.in_body = self.in_body or tag == "body"
        if tag in ("script", "style"):
            self.skipping = not (dict(attrs).get("type") or "").startswith("math/tex")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.skipping = False

    def handle_data(self, data):
        if self.in_body and not self.skipping:
            self.parts.append(data)


def commands(text):
    return collections.Counter(COMMAND.findall(text))


def visible(page):
    parser = VisibleText()
    parser.feed(page)
    parser.close()
    return "".join(parser.parts)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get")
def test_the_equations_of_200_pages_survive(tmp_path):
    [package] = download(["sagemath-doc"], tmp_path)
    pattern = Pattern(["*/html/en/reference/*.html"], ["*genindex*", "*/_modules/*"])
    pages = sorted(page.body.decode() for page in package_pages(package, pattern))
    random.Random(0).shuffle(pages)
    with_formulas = (page for page in pages if len(commands(visible(page))) >= 5)
    pages = list(itertools.islice(with_formulas, 200))
    assert len(pages) == 200
    before = sum((commands(visible(page)) for page in pages), collections.Counter())
    after = collections.Counter()
    for page in pages:
        text, fault = render(with_latex(page))
        assert fault is None
        after += commands(text) & commands(visible(page))
    assert before.total() > 10_000
    survived = after.total() / before.total()
    assert survived >= 0.98, f"{after.total()} of {before.total()} commands"
