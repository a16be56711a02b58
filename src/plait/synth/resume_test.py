"""Every generator, interrupted in the middle and started again: it repeats no call that was
answered, and writes what an uninterrupted run writes."""

import json
from collections import Counter

import pytest

from plait.core.errors import EndpointError
from plait.synth.author_test import author
from plait.synth.generators_test import CODE, PAGE, SENTENCE, TOOLS
from plait.synth.scripted_test import Status, scripted
from plait.synth.stage import GENERATORS, AnySynthSettings, write

QUESTIONS = [
    {"question": f"{who} has seven apples and gives away two; how many are left for {who}?"}
    for who in ("Ann, a baker", "Bob in Rome", "my old aunt")
]
CASES = {
    "stem": {"rows": QUESTIONS, "rounds": [["harder"], ["varied"]], "choice_share": 0.5},
    "dialogue": {"texts": [f"{PAGE} {i}" for i in range(4)]},
    "diverse_qa": {"texts": [f"{PAGE} {i}" for i in range(4)]},
    "translate": {"texts": ["Two is even.\nThree is odd.", "Four is even."], "languages": ["de"]},
    "code_qa": {
        "texts": [CODE, CODE.replace("part", "piece")],
        "metadata": {"language": "python"},
    },
    "academic_qa": {"texts": [f"{PAGE} {i}" for i in range(3)]},
    "reasoning": {"rows": QUESTIONS, "num_votes": 3, "min_agreement": 0.3},
    "tool_calls": {"rows": [{"tools": TOOLS}], "conversations_per_set": 3},
    "rephrase": {"texts": [f"{PAGE} {i}" for i in range(4)], "style": "list", "min_tokens": 5},
    "long_document_qa": {
        "texts": ["".join(f"Line {i}: {SENTENCE}\n" for i in range(80))],
        "min_document_tokens": 1000,
        "chunk_tokens": 200,
        "chunk_share": 0.5,
    },
}


def test_every_generator_has_a_case():
    assert set(CASES) == set(GENERATORS)


@pytest.mark.parametrize("generator", CASES)
def test_interrupting_repeats_no_answered_call(generator, sources, tmp_path):
    if generator == "academic_qa":
        pytest.importorskip("milvus_lite")
    case = dict(CASES[generator])
    texts, metadata = case.pop("texts", []), case.pop("metadata", {})
    if rows := case.pop("rows", []):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        case["files"] = [str(tmp_path / "rows.jsonl")]
    documents = [
        {"id": f"page{i}", "text": text, "metadata": metadata} for i, text in enumerate(texts)
    ]
    sources = sources._replace(documents=lambda: iter(documents), num_documents=lambda: len(texts))
    answered: Counter[str] = Counter()

    def run(name, most_calls=None):
        def script(body):
            if most_calls is not None and answered.total() >= most_calls:
                return Status(401, "the key has expired")
            answered[json.dumps(body, sort_keys=True)] += 1
            return author(body)

        with scripted(script) as endpoint:
            default = {"url": endpoint.url, "model": "m", "max_in_flight": 2}
            table = {"generator": generator, "category": "new", "validation_share": 0, **case}
            settings = AnySynthSettings.parse(table | {"endpoints": {"default": default}}, "test")
            write(settings, sources._replace(cache=tmp_path / name / "cache"), tmp_path / name)

    run("whole")
    whole = dict(answered)
    assert set(whole.values()) == {1}
    answered.clear()
    with pytest.raises(EndpointError, match="refuses its key"):
        run("broken", most_calls=len(whole) // 2)
    interrupted = dict(answered)
    assert len(interrupted) == len(whole) // 2 > 0
    run("broken")
    # At most the one that was on its way when the other was refused.
    again = [call for call, times in answered.items() if times > 1]
    assert len(again) <= 1
    assert set(answered) == set(whole)
    for file in (tmp_path / "whole").rglob("*.jsonl"):
        other = tmp_path / "broken" / file.relative_to(tmp_path / "whole")
        assert other.read_bytes() == file.read_bytes()
