import pytest
from datatrove.data import Document

from plait.data.code import steps
from plait.data.curate_settings import CategorySettings

GOOD = "".join(
    f"{w}_{n} = compute({w}, {n})\n" for n, w in enumerate(["alpha", "beta", "size"] * 9)
)
GOOD += "total, offset, buffer, result, index = gamma\n"


def category(**code):
    return CategorySettings.parse({"installed": [{}], "content": "code", "code": code}, "")


def document(text, licence=None):
    metadata = {"category": "c", "media_type": "text/x-python", "licence": licence}
    return Document(text, "1", metadata=metadata)


@pytest.mark.parametrize(
    ("head", "stated", "reason", "licence", "origin"),
    [
        ("", "Expat", None, "MIT", "repository"),
        ("", None, "license_absent", None, None),
        ("", "some words", "license_absent", "some words", None),
        ("", "GPL-2+", "license_not_permissive", "GPL-2.0-or-later", "repository"),
        ("# SPDX-License-Identifier: ISC\n", "GPL-2+", None, "ISC", "file"),
        (
            "# SPDX-License-Identifier: MPL-2.0\n",
            "MIT",
            "license_not_permissive",
            "MPL-2.0",
            "file",
        ),
    ],
)
def test_the_file_speaks_before_its_repository(through, head, stated, reason, licence, origin):
    doc = document(head + GOOD, stated)
    assert through(steps(category()), doc) == reason
    assert doc.metadata["licence"] == licence
    assert doc.metadata.get("licence_from") == origin
    assert doc.metadata["language"] == "python"


def test_what_is_stated_may_count_alone(through):
    doc = document("# SPDX-License-Identifier: GPL-2.0-only\n" + GOOD, "PSF-2.0")
    assert through(steps(category(detect_licences=False)), doc) is None
    assert doc.metadata["licence"] == "PSF-2.0"


def test_rules_and_syntax_are_judged(through):
    assert through(steps(category()), document("\n", "MIT")) == "no_text"
    assert through(steps(category()), document("x = 1", "MIT")) == "code_too_short"
    assert through(steps(category()), document(GOOD + "def (:\n", "MIT")) == "code_syntax"
    assert through(steps(category(max_error_lines=1.0)), document(GOOD + ")", "MIT")) is None
