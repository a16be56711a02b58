import sys

import pytest

from plait.core.errors import PlaitError
from plait.data import licences
from plait.data.licences import (
    RepositoryLicences,
    comments,
    detected,
    folder_licence,
    head_licence,
    is_licence_file,
    is_permissive,
    normalised,
)


@pytest.fixture
def no_scancode(monkeypatch):
    """Fail where ScanCode would be asked."""

    def loaded():
        raise AssertionError("ScanCode was asked")

    monkeypatch.setattr(licences, "_scancode", loaded)


@pytest.fixture
def fake_scancode(monkeypatch, request):
    """Recognise two words as licences."""

    class Detection:
        matches = ()

        def __init__(self, expression):
            self.license_expression_spdx = expression

    def detect(query_string):
        names = {"ALPHA": "MIT", "BETA": "GPL-3.0-only", "GAMMA": "LicenseRef-scancode-unknown"}
        return [Detection(name) for word, name in names.items() if word in query_string]

    monkeypatch.setattr(licences, "_scancode", lambda: detect)
    detected.cache_clear()
    request.addfinalizer(detected.cache_clear)  # noqa: PT021 (a wrapped generator is none)


@pytest.mark.parametrize(
    ("statement", "expression", "permissive"),
    [
        ("Expat", "MIT", True),
        ("mit", "MIT", True),
        ("GPL-2+", "GPL-2.0-or-later", False),
        ("LGPL-2.1", "LGPL-2.1-only", False),
        ("GPL-2+ or BSD-3-clause", "BSD-3-Clause OR GPL-2.0-or-later", True),
        ("Apache-2.0, and GPL-3+", "Apache-2.0 AND GPL-3.0-or-later", False),
        ("BSD-2-clause and (ISC or GPL-2)", "BSD-2-Clause AND (GPL-2.0-only OR ISC)", True),
        ("Apache-2.0 with LLVM-exception", "Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", None, False),
        ("public-domain", "LicenseRef-scancode-public-domain", True),
        ("see /usr/share/doc/x/copyright", None, None),
        ("Expat and", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_what_is_stated_becomes_an_expression_and_a_verdict(statement, expression, permissive):
    found = normalised(statement)
    if permissive is None:
        assert found is None
    else:
        assert found == (expression or statement)
        assert is_permissive(found) is permissive


@pytest.mark.usefixtures("no_scancode")
@pytest.mark.parametrize(
    ("head", "expression"),
    [
        ("// SPDX-License-Identifier: MIT OR Apache-2.0\nint x;", "Apache-2.0 OR MIT"),
        ("/* SPDX-License-Identifier: GPL-2.0-only */\nint x;", "GPL-2.0-only"),
        ("#!/bin/sh\n# Copyright (c) 2020 A Person\nexit 0", None),
        ("int license = 3; // code\n", None),
        ("x = 1\n" * 500 + "# SPDX-License-Identifier: MIT\n", None),
    ],
)
def test_tags_and_plain_heads_need_no_index(head, expression):
    assert head_licence(head) == expression


@pytest.mark.usefixtures("fake_scancode")
def test_the_paragraphs_that_talk_of_licences_are_looked_at():
    head = "# BETA tests.\n#\n# Licensed under ALPHA.\n#\n# All about BETA.\nBETA = 1\n"
    assert head_licence(head) == "MIT"
    assert head_licence("/* License: ALPHA\n * and BETA. */") == "GPL-3.0-only AND MIT"
    assert head_licence("// license GAMMA") is None
    assert head_licence("// license of my own") is None


def test_comments_lose_their_markers_and_code_is_left_out():
    head = '#!/bin/sh\n/* one\n *\n * two */\nint x; // no\n"""doc\nmore"""\ny = 2\n-- sql\n'
    assert comments(head).split("\n") == [
        *("bin/sh", "one", "", "two", "doc", "more", "sql", ""),
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LICENSE", True),
        ("a/b/COPYING.LESSER", True),
        ("LICENCE.txt", True),
        ("license-MIT", True),
        ("UNLICENSE", True),
        ("license.py", False),
        ("licensed", False),
        ("copying_test.go", False),
    ],
)
def test_names_of_licence_files(path, expected):
    assert is_licence_file(path) is expected


@pytest.mark.usefixtures("fake_scancode")
def test_the_nearest_licence_file_speaks_for_a_path():
    files = [("LICENSE", b"ALPHA"), ("lib/COPYING", b"BETA"), ("lib/LICENSE", b"ALPHA")]
    tree = RepositoryLicences([*files, ("docs/LICENSE", b"nothing known")])
    assert tree.of("src/a.c") == "MIT"
    assert tree.of("lib/deep/a.c") == "GPL-3.0-only AND MIT"
    assert tree.of("docs/a.c") == "MIT"
    assert RepositoryLicences([]).of("a.c") is None


@pytest.mark.usefixtures("fake_scancode")
def test_a_folder_has_the_licence_of_its_repository(tmp_path):
    (tmp_path / "LICENSE").write_text("BETA")
    (tmp_path / "repo/.git").mkdir(parents=True)
    (tmp_path / "repo/src").mkdir()
    assert folder_licence(tmp_path / "repo/src") is None
    folder_licence.cache_clear()
    (tmp_path / "repo/COPYING").write_text("ALPHA")
    assert folder_licence(tmp_path / "repo/src") == "MIT"
    folder_licence.cache_clear()


def test_without_scancode_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "licensedcode.detection", None)
    licences._scancode.cache_clear()
    with pytest.raises(PlaitError, match=r"plait\[code\].*code.detect_licences = false"):
        head_licence("# Licensed under terms that only an index knows.")
    licences._scancode.cache_clear()
