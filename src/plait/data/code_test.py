import pytest
from datatrove.data import Document

from plait.data.code import code_fault, steps
from plait.data.curate_settings import CategorySettings, CodeRules


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n" * 30, None),
        ("x = 1", "code_too_short"),
        ("x = 1\n" * 200_000, "code_too_long"),
        ("x = 1\n" * 30 + "y" * 1001, "code_long_line"),
        ("z" * 300 + "\n" + "w" * 300, "code_long_lines"),
        ("{ } [ ] ;\n" * 30, "code_few_letters"),
    ],
)
def test_code_rules(text, reason, through):
    assert code_fault(text, CodeRules()) == reason
    category = CategorySettings.parse({"installed": [{}], "content": "code"}, "")
    doc = Document(text, "1", metadata={"category": "c", "media_type": "text/x-python"})
    assert through(steps(category), doc) == reason
    assert doc.metadata["language"] == "python"
