"""Formulas of an HTML page as LaTeX in its text, so that a text browser prints them.

What pages do with formulas, and what is made of it:

    <script type="math/tex">x</script>              old MathJax           \\(x\\)
    <span class="katex"> ... <annotation>x</...>    KaTeX, drawn twice    \\(x\\)
    <math alttext="x">, <math> with an annotation   MathML that kept TeX  \\(x\\)
    <img class="tex" alt="x">                       pictures of formulas  left: lynx prints alt

Formulas set as a display become `\\[x\\]`. `\\(`, `\\[` and dollar signs in the text are text and
stay. MathML without its TeX stays too: lynx prints it between `[MATH:` and `:MATH]`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from resiliparse.parse.html import HTMLTree

# What is not text, and what MathJax drew beside the scripts that hold the formulas.
_NO_TEXT = (
    "link, style, noscript, script, .MathJax, .MathJax_Preview, .MathJax_Display, "
    ".MathJax_SVG, .MathJax_CHTML, .mjx-chtml, img.mwe-math-fallback-image-inline, "
    "img.mwe-math-fallback-image-display"
)
_TEX = 'annotation[encoding="application/x-tex"], annotation[encoding="TeX"]'


def with_latex(html: str, skip: Sequence[str] = ()) -> str:
    """Return the page with its formulas as LaTeX and without what the CSS selectors `skip` name."""
    tree: Any = HTMLTree.parse(html)
    root = tree.document
    for script in list(root.query_selector_all('script[type^="math/tex"]')):
        is_display = "mode=display" in (script.getattr("type") or "").replace(" ", "")
        _replace(tree, script, script.text, is_display)
    for formula in list(root.query_selector_all(".katex")):
        _replace_by_annotation(tree, formula, _is_within(formula, "katex-display"))
    for formula in list(root.query_selector_all("math")):
        is_display = formula.getattr("display") == "block"
        if not _replace_by_annotation(tree, formula, is_display):
            _replace(tree, formula, formula.getattr("alttext") or "", is_display)
    _remove(list(root.query_selector_all(", ".join((_NO_TEXT, *skip)))))
    return root.html


def _replace_by_annotation(tree: Any, formula: Any, is_display: bool) -> bool:
    annotation = formula.query_selector(_TEX)
    return annotation is not None and _replace(tree, formula, annotation.text, is_display)


def _replace(tree: Any, node: Any, tex: str, is_display: bool) -> bool:
    """Put a formula's LaTeX in the place of a node, if there is any and the node still stands."""
    if not tex.strip() or node.parent is None:
        return False
    left, right = ("\\[", "\\]") if is_display else ("\\(", "\\)")
    node.parent.replace_child(tree.create_text_node(f"{left}{tex.strip()}{right}"), node)
    return True


def _is_within(node: Any, class_name: str) -> bool:
    parent = node.parent
    return parent is not None and class_name in parent.class_list


def _remove(nodes: Iterable[Any]) -> None:
    for node in nodes:
        if node.parent is not None:
            node.parent.remove_child(node)
