import random
from pathlib import Path

import orjson
from datatrove.data import Document

from plait.data import dedup
from plait.data.curate_io import DropWriter, PassReader, PassWriter
from plait.data.curate_settings import DedupSettings
from plait.data.executors import LocalTasks

NUM_WORDS = 300
NUM_TASKS = 3


def random_text(rng):
    return [f"w{rng.randrange(4000)}x" for _ in range(NUM_WORDS)]


def edited(rng, words, num_edits):
    words = list(words)
    for place in rng.sample(range(len(words)), num_edits):
        words[place] = "edited" + "abcdefghij"[place % 10]
    return words


def jaccard(a, b, n=24):
    texts = (" ".join(words) for words in (a, b))
    grams = [{text[i : i + n] for i in range(len(text) - n + 1)} for text in texts]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def deduplicate(
    tmp_path: Path, documents: list[tuple[str, str]]
) -> tuple[set[str], dict[str, str]]:
    """Return the ids kept, and the reason of each dropped one; documents are spread over tasks."""
    writer = PassWriter(tmp_path / "in")
    with writer:
        for i, (name, text) in enumerate(documents):
            metadata = {"category": "c", "language": "en", "url": None}
            writer.write(Document(text, name, metadata=metadata), i % NUM_TASKS)
    settings, passes = DedupSettings(), LocalTasks(tmp_path / "logs", None)
    exact = DropWriter(tmp_path / "exact_drops", False, "exact_duplicate")
    near = DropWriter(tmp_path / "near_drops", False, "near_duplicate")
    read_in, read_exact = PassReader(tmp_path / "in"), PassReader(tmp_path / "exact")
    for steps, num_tasks in (
        ([read_in, dedup.exact_signatures(tmp_path)], NUM_TASKS),
        ([dedup.find_exact(tmp_path)], 1),
        (
            [
                read_in,
                dedup.drop_exact(tmp_path, exact),
                PassWriter(tmp_path / "exact"),
                dedup.NearSignatures(tmp_path, settings),
            ],
            NUM_TASKS,
        ),
        ([dedup.FindNear(tmp_path)], settings.num_bands),
        ([dedup.cluster_near(tmp_path, settings)], 1),
        ([read_exact, dedup.drop_near(tmp_path, near), PassWriter(tmp_path / "out")], NUM_TASKS),
    ):
        passes.run(f"pass{num_tasks}{len(list(passes.logs.glob('*')))}", steps, num_tasks)
    kept = {line["id"] for line in read_lines(tmp_path / "out")}
    drops = [*read_lines(tmp_path / "exact_drops"), *read_lines(tmp_path / "near_drops")]
    assert len(kept) + len(drops) == len(documents)
    return kept, {line["id"]: line["reason"] for line in drops}


def read_lines(folder):
    files = sorted(folder.glob("*"))
    return [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]


def test_planted_duplicates_are_found_and_strangers_kept(tmp_path):
    rng = random.Random(0)
    originals = [random_text(rng) for _ in range(60)]
    documents = [(f"original{i}", " ".join(words)) for i, words in enumerate(originals)]
    # Copies that differ in case and blanks only.
    documents += [(f"copy{i}", f"  {text.upper()}\n") for i, (_, text) in enumerate(documents[:10])]
    similarities = []
    for i, words in enumerate(originals[10:50], start=10):
        near = edited(rng, words, num_edits=2 + i % 5)
        similarities.append(jaccard(words, near))
        documents.append((f"near{i}", " ".join(near)))
    far = edited(rng, originals[55], num_edits=120)
    assert jaccard(originals[55], far) < 0.2
    documents.append(("far", " ".join(far)))

    kept, dropped = deduplicate(tmp_path, documents)

    reasons = list(dropped.values())
    assert reasons.count("exact_duplicate") == 10
    assert all((f"original{i}" in kept) != (f"copy{i}" in kept) for i in range(10))
    # The chance to find a pair of similarity s is 1 - (1 - s^13)^20.
    expected = sum(1 - (1 - s**13) ** 20 for s in similarities)
    assert expected > 36
    assert reasons.count("near_duplicate") >= expected - 2
    pairs = {name: {f"original{name[4:]}", name} for name, _ in documents if name[:4] == "near"}
    for name, reason in dropped.items():
        if reason == "near_duplicate":
            pair = pairs[f"near{name.removeprefix('original').removeprefix('near')}"]
            assert len(pair & kept) == 1
    assert {"far", "original55", *(f"original{i}" for i in range(50, 60))} <= kept


def test_nothing_in_nothing_out(tmp_path):
    assert deduplicate(tmp_path, []) == (set(), {})


def test_texts_shorter_than_an_ngram_are_compared_exactly(tmp_path):
    kept, dropped = deduplicate(tmp_path, [("a", "two words"), ("b", "Two  words"), ("c", "three")])
    assert "c" in kept
    assert list(dropped.values()) == ["exact_duplicate"]
