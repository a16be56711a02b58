import json

from plait.align.instructed import ALONE, KINDS, MAX_INSTRUCTIONS, instructed
from plait.grade.instruction.grade import CHECKS, check_instructions

PROMPTS = [f"Why is {n} odd, and who says so?" for n in range(600)]


def references():
    return [json.loads(instructed(prompt)["reference"]) for prompt in PROMPTS]


def test_every_kind_of_ifeval_is_drawn_and_its_arguments_are_ones_the_verifier_takes():
    assert set(KINDS) == set(CHECKS)
    found = references()
    for each in found:
        check_instructions(each["instruction_id_list"], each["kwargs"], "An answer.")
    assert {name for each in found for name in each["instruction_id_list"]} == set(KINDS)


def test_instructions_do_not_contradict_each_other():
    counts = set()
    for each in references():
        names = each["instruction_id_list"]
        groups = [KINDS[name].group for name in names]
        assert len(set(groups)) == len(groups)
        assert len(names) == 1 or not ALONE & set(names)
        counts.add(len(names))
    assert counts == set(range(1, MAX_INSTRUCTIONS + 1))


def test_the_prompt_says_what_is_checked_and_is_the_same_every_time():
    for prompt in PROMPTS[:100]:
        record = instructed(prompt)
        assert record == instructed(prompt)
        text = record["prompt"][0]["content"]
        assert text.startswith(f"{prompt}\n\n")
        for table in json.loads(record["reference"])["kwargs"]:
            for name, value in table.items():
                if name not in ("language", "prompt_to_repeat"):
                    spoken = ", ".join(value) if isinstance(value, list) else str(value)
                    assert spoken in text
