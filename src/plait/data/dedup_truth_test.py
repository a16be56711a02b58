"""Ground truth for near duplicates: real pages, edited copies of them, exact Jaccard similarities.

How much a copy is edited is drawn evenly on a logarithmic scale, 0.2 % to 10 % of its words, in one
of the ways in which pages come to differ: words changed here and there, a passage put in, a passage
left out. Similarities are counted over sets of 24-grams of characters, which shares nothing with
MinHash.
"""

import math
import random
import shutil

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from plait.data.debian import download, package_pages
from plait.data.dedup_test import deduplicate
from plait.data.extract import extract_text
from plait.data.pages import Pattern, sample

N = 24
NUM_PAGES = 600
SIMILAR = 0.8


def pages(folder):
    """Return texts of real pages, none of them near another."""
    debs = download(["python-scipy-doc", "python3.11-doc|python3.13-doc|python3.12-doc"], folder)
    texts = []
    for deb in debs:
        for page in sample(package_pages(deb, Pattern(["*.html"])), 1500, seed=0):
            text = " ".join(
                extract_text(page.body.decode("utf-8", "replace"), "resiliparse").lower().split()
            )
            if len(text) > 1000:
                texts.append(text[:20_000])
    random.Random(0).shuffle(texts)
    return texts


def edited(text, rng):
    """Return a copy that differs as copies of pages do."""
    words = text.split(" ")
    num_edits = max(1, round(len(words) * math.exp(rng.uniform(math.log(0.002), math.log(0.1)))))
    kind, place = rng.randrange(3), rng.randrange(len(words) - num_edits + 1)
    if kind == 0:
        for spot in rng.sample(range(len(words)), max(1, num_edits // 4)):
            words[spot] = f"edit{rng.randrange(10**6)}"
    elif kind == 1:
        words[place:place] = [f"new{rng.randrange(10**6)}" for _ in range(num_edits)]
    else:
        del words[place : place + num_edits]
    return " ".join(words)


def similarities(texts):
    """Return the exact Jaccard similarities of all pairs."""
    numbers, rows, columns = {}, [], []
    for row, text in enumerate(texts):
        grams = {text[i : i + N] for i in range(max(len(text) - N, 0) + 1)}
        found = [numbers.setdefault(gram, len(numbers)) for gram in grams]
        rows += [row] * len(found)
        columns += found
    ones = np.ones(len(rows), np.int32)
    sets = csr_matrix((ones, (rows, columns)), (len(texts), len(numbers)))
    common = (sets @ sets.T).toarray()
    sizes = common.diagonal()
    return common / (sizes[:, None] + sizes[None, :] - common)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get")
def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path):
    rng = random.Random(1)
    originals = pages(tmp_path / "apt")[:NUM_PAGES]
    assert len(originals) == NUM_PAGES
    texts = originals + [edited(text, rng) for text in originals]
    exact = similarities(texts)
    names = [f"d{number}" for number in range(len(texts))]
    kept, dropped = deduplicate(tmp_path, list(zip(names, texts, strict=True)))

    planted = [n for n in range(NUM_PAGES) if SIMILAR <= exact[n, n + NUM_PAGES] < 1]
    found = [n for n in planted if not {f"d{n}", f"d{n + NUM_PAGES}"} <= kept]
    recall = len(found) / len(planted)
    near = [int(name[1:]) for name, reason in dropped.items() if reason == "near_duplicate"]
    np.fill_diagonal(exact, 0)
    right = [n for n in near if exact[n].max() >= SIMILAR]
    precision = len(right) / len(near)
    for low in (0.8, 0.85, 0.9, 0.95):
        inside = [n for n in planted if low <= exact[n, n + NUM_PAGES] < low + 0.05]
        num = sum(n in set(found) for n in inside)
        print(f"Jaccard {low:.2f} to {low + 0.05:.2f}: {num} of {len(inside)}")  # noqa: T201
    print(f"recall {recall:.4f}, precision {precision:.4f} of {len(near)}")  # noqa: T201
    assert len(planted) > 400
    assert recall >= 0.97
    assert precision >= 0.95
