import justext
import pytest
from datatrove.data import Document

from plait.core.errors import ConfigError
from plait.data.curate_settings import CategorySettings
from plait.data.extract import (
    _XML_PROLOG,
    check_selectors,
    decode,
    extract_text,
    extraction_step,
    is_text,
    tidy,
)
from plait.data.paragraphs import find_blocks, good_paragraphs

GERMAN = "Größere Übungen führen zu schönen Lösungen und häufig auch zu Ärger über Straßen. "
JAPANESE = "これは日本語の文章です。文字コードを正しく判定できるかどうかを確かめます。"
KOREAN = "이 문서는 아파치 웹서버를 설정하는 파일들을 설명한다. 가능한 언어와 번역을 보라. "
PARAGRAPH = (
    "The main text of a page is made of paragraphs that are long enough to be read, and that have "
    "many of the small words of the language in which they were written, so that a list of links "
    "is not like them. It goes on for a while, for the text must be of some length to be kept. "
)


@pytest.mark.parametrize(
    ("body", "declared", "text"),
    [
        (GERMAN.encode(), None, GERMAN),
        (GERMAN.encode(), "iso-8859-1", GERMAN),
        (GERMAN.encode("latin-1"), "iso-8859-1", GERMAN),
        (GERMAN.encode("utf-8-sig"), "latin-1", GERMAN),
        (GERMAN.encode("utf-16"), "utf-8", GERMAN),
        (GERMAN.encode("utf-16-le"), "utf-16le", GERMAN),
        (KOREAN.encode("euc-kr"), None, KOREAN),
        (KOREAN.encode("euc-kr"), "no-such-charset", KOREAN),
        (JAPANESE.encode("shift_jis") * 3, None, JAPANESE * 3),
        (JAPANESE.encode("iso-2022-jp"), "iso-2022-jp", JAPANESE),
        (GERMAN.encode("latin-1"), "undefined", GERMAN),
        (GERMAN.encode("latin-1"), "latin\0", GERMAN),
        (rb"caf\ud83d" + GERMAN.encode(), "unicode_escape", rb"caf\ud83d".decode() + GERMAN),
    ],
)
def test_text_is_decoded_whatever_is_declared(body, declared, text):
    assert decode(body, declared) == text


def test_a_meta_tag_names_the_charset():
    page = '<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">Съешь ещё'
    assert decode(page.encode("cp1251"), None) == page


def test_a_stray_byte_is_marked_and_binary_is_refused():
    assert decode(GERMAN.encode() * 20 + b"\xff", "utf-8") == GERMAN * 20 + "\ufffd"
    assert decode(bytes(range(256)) * 4, None) is None


@pytest.mark.parametrize(
    ("media_type", "body", "expected"),
    [
        ("text/html; charset=x", b"", True),
        ("application/xhtml+xml", b"", True),
        ("image/png", b"<html>", False),
        ("", b"\n<!DOCTYPE html><p>", True),
        ("", b"\x89PNG", False),
    ],
)
def test_pages_of_text_are_told_from_others(media_type, body, expected):
    assert is_text(media_type, body) is expected


PAGE = f"""<?xml version="1.0" encoding="UTF-8"?>
<html><head><title>t</title></head><body>
<nav><a href="a">Home</a> <a href="b">Next</a></nav>
<div class="site-head">Our Great Site</div>
<h1>Curves</h1><p>{PARAGRAPH}</p>
<p>A root of <span class="math">\\(x^2 + 1\\)</span> is i.</p>
<dl><dt><strong>x</strong><span class="classifier">array_like</span></dt></dl>
<pre>for i in range(3):
    f(i)</pre>
</body></html>"""


def test_resiliparse_keeps_latex_and_layout_and_leaves_out_navigation():
    text = extract_text(PAGE, "resiliparse", [".site-head"])
    assert text.startswith("Curves\n\nThe main text")
    assert "A root of \\(x^2 + 1\\) is i." in text
    assert "x : array_like" in text
    assert "for i in range(3):\n    f(i)" in text
    assert "Home" not in text
    assert "Great" not in text


def test_justext_keeps_full_paragraphs_only():
    assert extract_text(PAGE, "justext") == f"Curves\n\n{PARAGRAPH.strip()}"


def test_without_a_stop_list_resiliparse_steps_in():
    text = extract_text(f"<body><p>{JAPANESE}</p></body>", "justext")
    assert text == JAPANESE


@pytest.mark.parametrize("extractor", ["justext", "resiliparse"])
@pytest.mark.parametrize("page", ["", "<", "<html></html>", "<p></p><!-- x"])
def test_pages_without_text_are_empty(page, extractor):
    assert extract_text(page, extractor) in ("", "<")


def test_tidying():
    assert (
        tidy("A\u00a0b \r\n\r\n\r\n\r\nTitle¶\n\nTitle\n\tx\t\ty\x00\n") == "A b\n\nTitle\n\n\tx\ty"
    )


def document(text, media_type):
    return Document(text, "1", metadata={"category": "c", "media_type": media_type})


def test_documents_are_treated_by_media_type(through):
    source = {"installed": [{}], "extractor": "resiliparse"}
    step = extraction_step(CategorySettings.parse(source, ""))
    markdown = document("[![build](b.svg)](ci) <b>Hello</b> *there*", "text/markdown")
    assert through([step], markdown) is None
    assert markdown.text.strip() == "Hello *there*"
    assert through([step], document("<nav>only links</nav>", "text/html")) == "no_text"
    bomb = document("<div>" * 250_000, "text/html")
    assert through([step], bomb) == "too_many_tags"


def test_a_wrong_selector_is_refused():
    with pytest.raises(ConfigError, match=r"categories\.c\.skip: 'p\[\[' is not a CSS selector"):
        check_selectors("c", ["p[["])


def test_paragraphs_are_those_of_justext():
    inner = (
        f"<b>{PARAGRAPH}</b><br><br>{GERMAN * 4}<form><p>a<br>b <a href=x>{PARAGRAPH}</a></form>"
    )
    pages = [
        PAGE,
        f"<body><h2>T <i>i</i></h2><!-- c -->{inner}<select><option>{GERMAN}</select>tail</body>",
        f"<ul><li>{GERMAN}<li><h3>{PARAGRAPH}</h3></ul><script>x</script> after<br> <p></p>",
        "<p>a<object><param name=b>inside</object> © 2026</p>" + f"<p>{PARAGRAPH}</p>" * 3,
    ]
    for page in (_XML_PROLOG.sub("", page) for page in pages):
        theirs = justext.justext(page, justext.get_stoplist("English"))
        ours = find_blocks(page)
        good = good_paragraphs(ours, "English")
        assert [b.text for b in ours] == [p.text for p in theirs]
        facts = [(b.is_heading, b.chars_count_in_links, b.class_type) for b in ours]
        assert facts == [(p.heading, p.chars_count_in_links, p.class_type) for p in theirs]
        assert good == [p.text for p in theirs if not p.is_boilerplate]
    assert find_blocks("") == find_blocks("<!-- x -->") == []
