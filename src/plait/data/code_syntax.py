"""Whether source code can be parsed: Python by its own parser, seven more languages by tree-sitter.

tree-sitter goes on after an error and does not see through macros, so a few bad lines are taken:
what counts is the share of lines inside errors.
"""

import ast
import functools
import importlib
import warnings
from typing import Any

from plait.core.errors import PlaitError

# Language to module and function of its grammar.
_GRAMMARS = {
    "c": ("tree_sitter_c", "language"),
    "c++": ("tree_sitter_cpp", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
}


def error_share(text: str, language: str) -> float:
    """Return the share of lines that cannot be parsed; 0 for languages without a parser here.

    Python is parsed or not: 0 or 1. Headers called C may be C++ and get the better of both.
    """
    if language == "python":
        return 0.0 if _is_python(text) else 1.0
    if language not in _GRAMMARS:
        return 0.0
    share = _lines_in_errors(text, language)
    if language == "c" and share > 0:
        share = min(share, _lines_in_errors(text, "c++"))
    return share


def _is_python(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _lines_in_errors(text: str, language: str) -> float:
    code = text.encode("utf-8", "replace")
    root = _parser(language).parse(code).root_node
    bad, nodes = set(), [root]
    while nodes:
        node = nodes.pop()
        # An error may span a whole file, most of which was understood: its loose tokens are bad.
        loose = node.is_error and node.child_count == 0
        tokens = [child for child in node.children if node.is_error and child.child_count == 0]
        for place in [node] * (loose or node.is_missing) + tokens:
            bad.update(range(place.start_point[0], place.end_point[0] + 1))
        nodes.extend(child for child in node.children if child.has_error)
    return len(bad) / (text.count("\n") + 1)


@functools.cache
def _parser(language: str) -> Any:
    module, function = _GRAMMARS[language]
    try:
        from tree_sitter import Language, Parser

        grammar = importlib.import_module(module)
    except ImportError as error:
        raise PlaitError(
            f"{language} is parsed by tree-sitter ({error}): install it with pip install "
            "'plait[code]'"
        ) from None
    return Parser(Language(getattr(grammar, function)()))
