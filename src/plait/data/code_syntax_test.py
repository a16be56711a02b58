import sys

import pytest

from plait.core.errors import PlaitError
from plait.data import code_syntax
from plait.data.code_syntax import error_share

GOOD = {
    "python": "def f(x):\n    return x + 1\n",
    "c": "int f(int x) {\n    return x + 1;\n}\n",
    "c++": "template <class T> T f(T x) {\n    return x + 1;\n}\n",
    "java": "class A {\n    int f(int x) { return x + 1; }\n}\n",
    "javascript": "function f(x) {\n    return x + 1;\n}\n",
    "typescript": "function f(x: number): number {\n    return x + 1;\n}\n",
    "go": "package a\n\nfunc f(x int) int {\n\treturn x + 1\n}\n",
    "rust": "fn f(x: i32) -> i32 {\n    x + 1\n}\n",
}


@pytest.mark.parametrize("language", sorted(GOOD))
def test_code_parses_and_broken_code_does_not(language):
    good = GOOD[language]
    assert error_share(good, language) == 0
    assert error_share(good.replace(")", "(", 1), language) > 0.05
    assert error_share("This is a sentence, not code at all.\nAnd another; one.", language) > 0.3


def test_a_bad_line_in_a_long_file_is_a_small_share():
    text = GOOD["c"] * 50 + "int broken( {;\n" + GOOD["c"] * 50
    assert 0 < error_share(text, "c") < 0.05


def test_a_header_may_be_of_either_language():
    assert error_share(GOOD["c++"], "c") == 0


@pytest.mark.parametrize("text", ["x = '\0'", "(" * 10_000, "print 'two'", "-" * 100_000 + "1"])
def test_python_that_breaks_the_parser_is_no_python(text):
    assert error_share(text, "python") == 1


def test_other_languages_pass():
    assert error_share("(((", "fortran") == 0


def test_without_a_grammar_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tree_sitter_go", None)
    code_syntax._parser.cache_clear()
    with pytest.raises(PlaitError, match=r"go is parsed by tree-sitter .*plait\[code\]"):
        error_share(GOOD["go"], "go")
