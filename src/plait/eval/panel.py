"""A panel of held-out questions of several kinds, asked to every checkpoint of a recipe.

It shows what a stage gains and what it costs elsewhere: each kind of question is a column, each
checkpoint a row. Questions that have to be worked out are asked with thinking on and off, all
others (calls, instructions, letters) with thinking off; greedy, each once.
"""

from collections.abc import Callable, Mapping, Sequence

from plait.engine.request import Completion, SamplingParams
from plait.eval.run import Question, mean_score
from plait.grade.verifiers import Verifier

Answer = Callable[[Sequence[Question], SamplingParams, bool], list[Completion]]
"""(questions, how, thinking) -> completions"""

COLUMNS = {
    ("number", True): "chains.think",
    ("number", False): "chains.no_think",
    ("maths", True): "maths.think",
    ("maths", False): "maths.no_think",
    ("choice", True): "choices.think",
    ("choice", False): "choices.no_think",
    ("program", True): "programs.think",
    ("program", False): "programs.no_think",
    ("toolcall", False): "tool_calls.exact",
    ("instruction", False): "instructions.strict",
    ("reply", False): "letters.gold",
}
"""Verifier and thinking to the name of a score: accuracy, share of calls that equal the expected
one, mean share of a prompt's instructions that are strictly followed, mean worth of a letter."""


def panel_scores(
    questions: Sequence[Question],
    answer: Answer,
    verifiers: Mapping[str, Verifier],
    max_tokens: int,
) -> dict[str, float]:
    """Return the mean score of each column that has questions."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    scores: dict[str, float] = {}
    for (verifier, thinking), name in COLUMNS.items():
        asked = [question for question in questions if question.verifier == verifier]
        if not asked:
            continue
        grades = [
            verifiers[verifier](question.text, question.reference, completion.content).value
            for question, completion in zip(asked, answer(asked, params, thinking), strict=True)
        ]
        scores[name] = mean_score(grades).accuracy
    return scores
