import json

import pytest

from plait.core.errors import DataError
from plait.grade.verifiers import VERIFIERS, load_verifier, verifier_place

INSTRUCTION = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
CALL = [{"name": "now", "arguments": {}}]
EXAMPLES = {
    "number": ("7", "It is 7.", "It is 8."),
    "maths": (r"\frac{1}{2}", "The answer is 0.5", "The answer is 2"),
    "choice": ("B", "The answer is B", "The answer is C"),
    "instruction": (json.dumps(INSTRUCTION), "no commas here", "one, here"),
    "program": (json.dumps({"test": "assert f() == 1"}), "def f(): return 1", "def f(): return 2"),
    "reply": ('{"name": "Anna", "thing": "lamp"}', "Dear Anna. The lamp works. Thank you.", ""),
    "toolcall": (json.dumps({"calls": CALL}), f"<TOOLCALL>{json.dumps(CALL)}</TOOLCALL>", "none"),
}


@pytest.mark.parametrize("name", VERIFIERS)
def test_every_name_grades(name):
    reference, right, wrong = EXAMPLES[name]
    verify = load_verifier(verifier_place(name))
    assert verify("q", reference, right).value == 1
    assert verify("q", reference, wrong).value == 0


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(DataError, match="no verifier 'maht'; did you mean 'maths'"):
        verifier_place("maht")
