import pytest

from plait.data.maths_html import with_latex


@pytest.mark.parametrize(
    ("html", "formula"),
    [
        (
            r'<script type="math/tex">a<b &amp; \frac{1}{2}</script>',
            r"\(a&lt;b &amp;amp; \frac{1}{2}\)",
        ),
        (r'<script type="math/tex; mode=display">\sum_i</script>', r"\[\sum_i\]"),
        (
            r'<span class="katex"><span class="katex-mathml"><math><semantics><mi>x</mi>'
            r'<annotation encoding="application/x-tex">\alpha</annotation></semantics></math>'
            r"</span>"
            r'<span class="katex-html">α</span></span>',
            r"\(\alpha\)",
        ),
        (
            r'<span class="katex-display"><span class="katex"><math><annotation '
            r'encoding="application/x-tex">\beta</annotation></math>β</span></span>',
            r"\[\beta\]",
        ),
        (r'<math alttext="\gamma" display="block"><mi>γ</mi></math>', r"\[\gamma\]"),
    ],
)
def test_every_way_of_setting_a_formula_gives_its_latex_once(html, formula):
    name = formula[2:-2]
    made = with_latex(f"<p>before {html} after</p>")
    assert f"before {formula}" in made or f">{formula}" in made
    assert made.count(name) == 1
    assert "script" not in made
    assert "<mi>" not in made
    assert not {"α", "β", "γ"} & set(made)


def test_what_mathjax_drew_goes_and_text_stays():
    html = (
        r"<p>let \(x\) and $y$<span class='MathJax_Preview'>z</span>"
        r"<span class='MathJax'>z</span><script type='math/tex'>z</script></p>"
    )
    assert r"<p>let \(x\) and $y$\(z\)</p>" in with_latex(html)


def test_mathml_without_tex_and_code_are_left_as_they_are():
    html = "<pre>for x:\n    y  =  1</pre><math><mfrac><mn>1</mn><mn>2</mn></mfrac></math>"
    assert html in with_latex(html)


def test_skipped_parts_and_broken_markup_do_no_harm():
    assert "menu" not in with_latex("<div class=nav>menu</div><p>text", [".nav"])
    assert "x" in with_latex("<p>" + "<b><i>" * 5_000 + "x")
    with_latex("")
