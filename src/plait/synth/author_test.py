"""A scripted model that answers every prompt of every generator as it should."""

import json
import re
from collections.abc import Callable
from typing import Any

from plait.synth.scripted_test import Body, asked, completion

TALK = "\n".join(
    f"{name}: Let us look at step {i} of the proof, which uses that two times a number is even."
    for i, name in enumerate(["Teacher", "Student"] * 4)
)
PAIRS = [
    {"kind": "yes_no", "question": "Is two even?", "answer": "Yes, it is twice one."},
    {"kind": "open_ended", "question": "What is even?", "answer": "Twice a whole number."},
    {"kind": "open_ended", "question": "What is even? ", "answer": "The same again."},
]
SOLUTION = (
    "Count up.\n\n```python\ndef total(n):\n    result = 0\n    return result + n\n```\nFast."
)


def author(body: Body) -> Any:
    """Answer a request; what it says depends on the request alone."""
    prompt = asked(body)
    for mark, answer in _ANSWERS.items():
        if mark in prompt:
            said = answer(prompt, body)
            return said if isinstance(said, str) or "choices" in said else json.dumps(said)
    raise AssertionError(f"no answer to {prompt[:200]!r}")


def _last_number(text: str) -> str:
    return (re.findall(r"\d+", text) or ["0"])[-1]


def _grown(prompt: str, body: Body) -> Any:
    assert re.search(r"science or engineering:\n\n.+\n\nWrite", prompt, re.DOTALL)
    words = [f"w{body['seed'] * k % 9973}" for k in range(1, 12)]
    return {"questions": [f"How many {' '.join(words)} are left of 7?"]}


def _turn(prompt: str, _: Body) -> Any:
    if "calls weather" not in prompt:
        return {"calls": [{"name": "weather", "arguments": {"city": "Oslo"}}], "message": ""}
    return {"calls": [], "message": "It is 4 degrees in Oslo."}


_ANSWERS: dict[str, Callable[[str, Body], Any]] = {
    "Rewrite it as a conversation": lambda *_: TALK,
    "write question and answer pairs": lambda *_: {"pairs": PAIRS},
    "passage of a long document": lambda *_: {"pairs": PAIRS[:1]},
    "good encyclopedia": lambda p, _: f"Here is the text:\n## Told\n**Again** {p[-200:]}",
    "Condense the text": lambda p, _: p[-200:],
    "a passage of a textbook": lambda p, _: p[-200:],
    "List the facts": lambda p, _: p[-200:],
    "Here is a question from mathematics": _grown,
    "Answer the question.": lambda p, _: completion(
        f"\\boxed{{{_last_number(p)}}}", reasoning_content="Counting."
    ),
    "Rewrite the question below as a multiple": lambda p, _: {
        "question": p.rpartition("Question:")[2],
        "options": [str(i) for i in range(10 if "exactly 10" in p else 4)],
    },
    "Answer the multiple-choice question": lambda *_: "So it is one. The answer is (B)",
    "Here is a multiple-choice item": lambda p, body: {
        "question": f"In town {body['seed']} all {body['seed']} bakers rise early. Who sleeps?",
        "options": ["nobody", "somebody", "the bakers"],
        "answer": "A",
    },
    # Three of four chains agree.
    "Solve this multiple-choice item": lambda _, body: (
        f"Rule out. The answer is ({'A' if body['seed'] % 4 else 'B'})"
    ),
    "Let it inspire": lambda p, body: {
        "question": f"Write a function of {body['seed']} that adds up to {body['seed']} numbers."
    },
    "Explain the idea of your solution": lambda *_: SOLUTION,
    "Translate the line": lambda p, _: f"Gern: 〘und {p.rpartition('〘')[2].strip().strip('〙')}〙",
    "multiple-choice question for university": lambda p, _: {
        "question": f"What about {p.split()[-1]}?",
        "options": ["w", "x", "y", "z"],
        "answer": "B",
        "justification": "Because of x.",
    },
    "answered in free form": lambda p, _: {
        "question": f"Why {p.split()[-1]}?",
        "answer": "Because.",
        "justification": "It follows.",
    },
    "You play a user": lambda p, _: (
        {"satisfied": True, "message": ""}
        if "conversation so far" in p
        else {"satisfied": False, "message": "How warm is it in Oslo?"}
    ),
    "You are an assistant that helps": _turn,
    "You play the server": lambda *_: {"result": {"degrees": 4}},
    "Judge a conversation": lambda *_: {"reason": "All asked was told.", "fulfilled": True},
}
