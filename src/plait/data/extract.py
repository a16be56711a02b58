"""From the bytes of a page to its text: decoding, main-content extraction, tidying.

Not for mathematics set as MathML or images: LaTeX between `\\(` and `\\)` or dollar signs survives,
as it is plain text to the extractors.
"""

import codecs
import contextlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from datatrove.data import Document
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import CSSParserException

from plait.core.errors import ConfigError
from plait.data.curate_settings import CategorySettings
from plait.data.language import identify
from plait.data.paragraphs import find_blocks, good_paragraphs
from plait.data.steps import Step, Task, per_document

Extractor = Literal["justext", "resiliparse"]

# Navigation in HTML5 and as the common generators of manuals mark it: DocBook, Texinfo, Sphinx.
NAVIGATION = (
    "nav", ".nav", ".navheader", ".navfooter", ".toc", ".header", ".contents", ".breadcrumb",
    ".sphinxsidebar", ".related", ".headerlink", ".viewcode-link", ".longdesc-link",
)  # fmt: skip

# jusText's names of our languages; it has no list for Chinese, Japanese and Thai.
STOP_LISTS = {
    "en": "English", "ar": "Arabic", "da": "Danish", "nl": "Dutch", "fr": "French",
    "de": "German", "it": "Italian", "ko": "Korean", "pl": "Polish", "pt": "Portuguese",
    "ru": "Russian", "es": "Spanish", "sv": "Swedish",
}  # fmt: skip

_HTML = ("text/html", "application/xhtml+xml")
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAX_BROKEN_SHARE = 0.001
# Real pages have some thousands; parsers take minutes over what is made to have millions.
_MAX_TAGS = 200_000
# Sphinx leaves the blanks around `name : type` to its style sheet.
_SPHINX_TYPE = '<span class="classifier">'
_XML_PROLOG = re.compile(r"^\s*<\?xml[^>]*\?>")
# Images (often inside a link), comments and tags.
_MARKDOWN_NOISE = re.compile(
    r"\[?!\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?|<!--.*?-->|</?[a-zA-Z][^>]*>", re.DOTALL
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\ufeff\u00ad]")


def is_text(media_type: str, body: bytes) -> bool:
    """Say whether a page is text, by its declared media type or, without one, by its start."""
    if media_type:
        name = media_type.split(";")[0].strip().lower()
        return name.startswith("text/") or name in _HTML
    start = body[:1024].lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<?xml")) or b"<html" in start


def decode(body: bytes, declared: str | None) -> str | None:
    """Decode a page, or return None if no encoding fits.

    In order: byte-order mark; UTF-8 if it fits exactly (other encodings practically never do by
    accident); the declared charset; that of a meta tag; the detected one. At last UTF-8 with up to
    0.1 % of broken characters, which are marked U+FFFD.
    """
    for mark, encoding in _BOMS:
        if body.startswith(mark):
            with contextlib.suppress(UnicodeDecodeError):
                return body.decode(encoding)
    meta = _META_CHARSET.search(body[:4096])
    named = [declared, meta[1].decode("ascii") if meta else None]
    # Seven-bit and wide encodings are also valid UTF-8: there a declaration goes first.
    shifted = b"\x1b$" in body or b"\x00" in body
    candidates = [*named, "utf-8"] if shifted else ["utf-8", *named]
    for encoding in (*candidates, detect_encoding(body, html5_compatible=False)):
        text = _decoded(body, encoding) if encoding else None
        if text is not None and "\x00" not in text:
            return text
    text = body.decode("utf-8", errors="replace")
    broken = text.count("\ufffd")
    return text if broken <= _MAX_BROKEN_SHARE * len(text) and "\x00" not in text else None


def extract_text(html: str, extractor: Extractor, skip: Sequence[str] = ()) -> str:
    """Return the main text of an HTML page, tidied; empty if it has none.

    What the CSS selectors in `NAVIGATION` and `skip` name is left out (not by jusText, which judges
    paragraphs by their links and stop words).
    """
    html = _XML_PROLOG.sub("", html)
    if extractor == "justext":
        blocks = find_blocks(html)
        code = identify("\n".join(block.text for block in blocks)).code
        if code in STOP_LISTS:
            return tidy("\n\n".join(good_paragraphs(blocks, STOP_LISTS[code])))
    return tidy(
        extract_plain_text(
            html.replace(_SPHINX_TYPE, f" : {_SPHINX_TYPE}"),
            main_content=True,
            alt_texts=False,
            comments=False,
            skip_elements=[*NAVIGATION, *skip],
        )
    )


def tidy(text: str) -> str:
    """Normalise Unicode (NFC), blanks and line ends; drop control characters and echoed lines.

    An echoed line repeats the line before it, as a heading and its anchor do.
    """
    text = unicodedata.normalize("NFC", _CONTROL.sub("", text.replace("\r\n", "\n")))
    text = text.replace("\u00a0", " ").replace("\r", "\n").replace("¶", "")
    kept: list[str] = []
    last = ""
    for line in text.split("\n"):
        line = re.sub(r"\t[\t ]*", "\t", line.rstrip())
        if not line:
            if kept and kept[-1]:
                kept.append("")
        elif line.strip() != last or len(last) < 4:
            kept.append(line)
            last = line.strip()
    return "\n".join(kept).strip()


def extraction_step(category: CategorySettings) -> Step:
    """Turn pages into text in place; drop those without any as `no_text`, tag bombs by name."""

    def extract(document: Document, task: Task) -> str | None:
        media_type = document.metadata.pop("media_type").split(";")[0].strip().lower()
        if media_type in _HTML or not media_type:
            if document.text.count("<") > _MAX_TAGS:
                document.text = ""
                return "too_many_tags"
            document.text = extract_text(document.text, category.extractor, category.skip)
        elif media_type == "text/markdown":
            document.text = tidy(_MARKDOWN_NOISE.sub("", document.text))
        else:
            document.text = tidy(document.text)
        return None if document.text else "no_text"

    return per_document("extract", extract)


def check_selectors(category: str, selectors: Sequence[str]) -> None:
    """Refuse what is no CSS selector.

    Raises: ConfigError naming the category and the selector.
    """
    for selector in selectors:
        try:
            extract_plain_text("<p>a</p>", skip_elements=[selector])
        except CSSParserException:
            raise ConfigError(
                f"categories.{category}.skip: {selector!r} is not a CSS selector"
            ) from None


def _decoded(body: bytes, encoding: str) -> str | None:
    # Browsers read some names more widely than Python does: iso-8859-1 as cp1252, gb2312 as gbk.
    for name in filter(None, (map_encoding_to_html5(encoding, fallback_utf8=False), encoding)):
        try:
            text = body.decode(name)
            text.encode()  # some of Python's codecs give halves of surrogate pairs
        except (ValueError, LookupError):  # there is a codec `undefined`, and names may hold a NUL
            continue
        return text
    return None
