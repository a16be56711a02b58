"""The same verdicts as IFEval's own checkers, which lm-eval carries."""

import json
import random
import sys
from collections import defaultdict

import pytest

from plait.grade.instruction.grade import CHECKS, Verdict, check_instructions
from plait.grade.instruction.grade_test import CASES
from plait.grade.instruction.sentences import split_sentences

TEXTS = [
    "The river is wide, and the SUN is LOW. Do we go? Yes! [name] [date]",
    "My answer is maybe.\n\nP.S. Wait for me.\n\nP.P.S one more",
    "* first\n* second\n- third\n\n**bold** *it* ** ** * *",
    "Section 1\nalpha\nSection 2\nbeta\nSECTION 3 gamma",
    "a *** b***c\n***\nd",
    "one\n******\ntwo\n******",
    '{"key": ["value", 1, null]}',
    "```json\n[1, 2,]\n```",
    "<<A title>>\n\nThe weekend was fine.\n\nweekend's over... The end.",
    '"A quoted reply, all of it. Any other questions?"',
    "WE MUST NOT SHOUT AT THE NEIGHBOURS. DON'T DO IT AGAIN.",
    "we must not shout at the neighbours. it is not polite.",
    "Der Fluss ist breit und die Sonne steht tief über dem Wasser.",
    "La rivière est large et le soleil est bas sur l'eau ce soir.",
    "12345 67890 !!!",
    "Sure! Here it is:\n\n\n\n'Once' upon a time\n\n\"twice\" shy",
]


@pytest.fixture
def reference(monkeypatch):
    """lm-eval's checkers; importing them would download a sentence model, so ours stands in."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("immutabledict")
    monkeypatch.setattr(nltk.data, "find", lambda *_: None)
    utils = pytest.importorskip("lm_eval.tasks.ifeval.utils")
    known = sys.modules["lm_eval.tasks.ifeval.instructions_util"]
    monkeypatch.setattr(known, "count_sentences", lambda text: len(split_sentences(text)))
    monkeypatch.setattr(known.nltk, "word_tokenize", nltk.tokenize.NLTKWordTokenizer().tokenize)
    return utils


def verdict_of(reference, names, arguments, response):
    record = reference.InputExample(0, names, "", arguments)
    return Verdict(
        reference.test_instruction_following_strict(record, response).follow_instruction_list,
        reference.test_instruction_following_loose(record, response).follow_instruction_list,
    )


def responses_for(rng):
    """Yield every text as it is, wrapped in chatter, and cut and glued at random places."""
    for good, bad in (case[2:] for case in CASES):
        yield from (good, bad, f"Sure:\n{good}\nBye", good.upper(), bad.lower())
    for text in TEXTS:
        other = rng.choice(TEXTS)
        glue = rng.choice(["\n", "\n\n", " ", "\n***\n", "\n******\n"])
        yield from (text, f"**{text}**", text[: rng.randrange(len(text))] + glue + other)


def arguments_for(name, arguments):
    """Yield a case's arguments with each count and relation varied."""
    yield arguments
    for key, value in arguments.items():
        if isinstance(value, int) and key != "nth_paragraph":
            yield from ({**arguments, key: count} for count in (2, 3, 5))
        if "relation" in key:
            yield from ({**arguments, key: text} for text in ("less than", "at least"))
    if name == "detectable_content:postscript":
        yield from ({"postscript_marker": marker} for marker in ("P.P.S", "PS:"))


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_the_same_verdict_as_ifeval_on_made_up_responses(reference, case):
    name = case[0]
    seen = set()
    slow = "language" in name or "english" in name  # detecting a language takes milliseconds
    for response in list(responses_for(random.Random(0)))[:: 6 if slow else 1]:
        for arguments in arguments_for(name, case[1]):
            expected = verdict_of(reference, [name], [arguments], response)
            assert check_instructions([name], [arguments], response) == expected, response
            seen.update(expected.strict)
    assert seen == {True, False}


def test_the_same_verdict_as_ifeval_on_its_own_prompts(reference, task_data):
    lines = (task_data / "ifeval/input_data.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    seen = defaultdict(set)
    for row, other in zip(rows, rows[7:] + rows[:7], strict=True):
        names, arguments = row["instruction_id_list"], row["kwargs"]
        if any(not table.get("letter", "a").isalpha() for table in arguments):
            continue  # the reference draws a letter at random instead
        for response in (row["prompt"], other["prompt"], f'"{other["prompt"]}"\n***\nP.S. x'):
            expected = verdict_of(reference, names, arguments, response)
            assert check_instructions(names, arguments, response) == expected
            for name, verdict in zip(names, expected.strict, strict=True):
                seen[name].add(verdict)
    assert seen.keys() == CHECKS.keys()
