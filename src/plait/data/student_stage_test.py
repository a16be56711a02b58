import json

import pytest

from plait.core.errors import ConfigError, DataError, EndpointError
from plait.data.student import Student
from plait.data.student_stage import StudentSettings, run
from plait.data.student_test import GOOD, pages

LABEL = {"url": "http://127.0.0.1:1/v1", "model": "m"}


def settings(**changes):
    table = {"labels": ["educational"], "features": "words", **changes}
    return StudentSettings.parse(table, "test")


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(file)]


def graded(prompts):
    """Label as a model would, by the words there are."""
    good = set(GOOD.split())
    shares = [sum(word in good for word in p.split()) / 150 for p in prompts]
    return [f"Because of its words.\nLabel: {round(share * 10)}" for share in shares]


def documents(folder, texts):
    for split in ("train", "validation"):
        (folder / "documents" / split).mkdir(parents=True)
    rows = [{"text": text, "id": str(i), "metadata": {}} for i, text in enumerate(texts)]
    write_rows(folder / "documents/train/crawl.jsonl", rows[:-1])
    write_rows(folder / "documents/train/other.jsonl", rows[-1:])
    return {"documents": folder}


def test_labels_of_a_file_are_learnt(tmp_path):
    texts, scores = pages(60)
    rows = [{"text": t, "educational": s, "more": 1} for t, s in zip(texts, scores, strict=True)]
    chosen = settings(files=write_rows(tmp_path / "labels.jsonl", rows))
    metrics = run(chosen, {}, tmp_path / "out")
    assert metrics["educational.num_labels"] == 60
    assert metrics["educational.rank_correlation"] > 0.9
    labels = Student.read(tmp_path / "out").labels([texts[5], texts[0]])["educational"]
    assert labels[0] > labels[1] + 2
    [first, *_] = (tmp_path / "out/labels.jsonl").read_text().splitlines()
    assert json.loads(first) == {"text": texts[0], "id": "labels.jsonl:1", "educational": 0.0}


def test_documents_are_labelled_by_a_model(tmp_path, caplog):
    texts, scores = pages(80)
    inputs = documents(tmp_path / "curate", texts)

    def ask(prompts):
        answers = graded(prompts)
        return [None, "?", *answers[2:]]

    chosen = settings(endpoints={"label": LABEL}, num_documents=40, categories=["crawl"])
    metrics = run(chosen, inputs, tmp_path / "out", {"label": ask})
    assert metrics["educational.num_labels"] == 38
    assert metrics["educational.rank_correlation"] > 0.8
    assert "2 of 40 labels were not given" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "out/labels.jsonl").read_text().splitlines()]
    for row in rows:
        assert abs(row["educational"] - scores[int(row["id"])]) <= 2
    again = tmp_path / "again"
    run(chosen, inputs, again, {"label": ask})
    for name in ("labels.jsonl", "student/student.json", "student/student.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_an_endpoint_that_is_down_stops_the_stage(tmp_path):
    def ask(prompts):
        raise EndpointError("endpoint of the role 'label' does not answer")

    inputs = documents(tmp_path / "curate", pages(20)[0])
    with pytest.raises(EndpointError, match="does not answer"):
        run(settings(endpoints={"label": LABEL}), inputs, tmp_path / "out", {"label": ask})
    assert not (tmp_path / "out/student").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x", "educational": 6}], "line 1: educational is 6; a number from 0 to 5"),
        ([{"text": "x", "educational": True}], "educational is True"),
        ([{"text": "x", "educational": "4"}], "educational is '4'"),
        ([{"text": "x", "subject": "Physik"}], "subject is 'Physik'; one of mathematics, physics"),
        ([{"text": "x", "quality": 4}], "has none of the labels educational, subject; it has"),
        ([{"educational": 4}], "line 1: not an object with a text"),
        ([[1]], "line 1: not an object with a text"),
        ([], "no labelled text in .*rows.jsonl"),
        ([{"text": "x", "educational": 4}], "1 texts with 1 different values"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    files = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=message):
        run(settings(files=files, labels=["educational", "subject"]), {}, tmp_path / "out")


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(ConfigError, match="labels come from files, or from a table endpoints"):
        settings()
    with pytest.raises(ConfigError, match="no rubric 'style' to ask for"):
        settings(labels=["style"], endpoints={"label": LABEL})
    with pytest.raises(ConfigError, match=r"documents = .* under \[inputs\]"):
        run(settings(endpoints={"label": LABEL}), {}, tmp_path, {"label": graded})
    inputs = documents(tmp_path / "curate", pages(20)[0])
    chosen = settings(endpoints={"label": LABEL}, categories=["crawl-"])
    with pytest.raises(ConfigError, match="no documents of 'crawl-'; did you mean 'crawl'"):
        run(chosen, inputs, tmp_path, {"label": graded})
