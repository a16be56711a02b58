from types import SimpleNamespace

from plait.eval.panel import COLUMNS, panel_scores
from plait.eval.run import Question
from plait.grade.choice import grade_choice
from plait.grade.verifiers import VERIFIERS


def test_every_verifier_has_a_column():
    """A question of one that has none would be read and never asked."""
    assert {verifier for verifier, _ in COLUMNS} == set(VERIFIERS)


def test_a_column_holds_the_mean_of_its_questions():
    prompt = [{"role": "user", "content": "A or B?"}]
    questions = [Question(letter, "f", prompt, "choice", letter) for letter in "AB"]

    def answer(asked, params, thinking):
        assert params.temperature == 0
        return [SimpleNamespace(content=each.reference if thinking else "A") for each in asked]

    scores = panel_scores(questions, answer, {"choice": grade_choice}, 9)
    assert scores == {"choices.think": 1.0, "choices.no_think": 0.5}
