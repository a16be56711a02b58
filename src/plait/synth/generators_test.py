"""Every generator, from its input to its files, with a model that answers as it should."""

import json
from pathlib import Path

import pytest

from plait.core.errors import DataError
from plait.synth.author_test import PAIRS, SOLUTION, TALK, author
from plait.synth.client import Unusable
from plait.synth.scripted_test import asked, scripted
from plait.synth.stage import GENERATORS, AnySynthSettings, write
from plait.synth.tool_calls import Call, Turn, check_turn

SENTENCE = "The sum of two even numbers is even because each is twice a whole number. "
PAGE = SENTENCE * 6


@pytest.fixture
def run(sources, tmp_path):
    """Run a generator on texts and rows; returns its folder and account."""

    def run_generator(generator, script=author, texts=(), rows=(), metadata=None, **table):
        documents = [
            {"id": f"page{i}", "text": text, "metadata": metadata or {}}
            for i, text in enumerate(texts)
        ]
        if rows:
            file = tmp_path / "rows.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            table["files"] = [str(file)]
        out = tmp_path / "out"
        with scripted(script) as endpoint:
            default = {"url": endpoint.url, "model": "m", "backoff_s": 0.01, "num_tries": 2}
            table |= {"endpoints": {"default": default}, "validation_share": 0}
            settings = AnySynthSettings.parse(
                {"generator": generator, "category": "new", **table}, "recipe"
            )
            write(settings, sources._replace(documents=lambda: iter(documents)), out)
        return out, json.loads((out / "funnel.json").read_text())

    return run_generator


def documents(out: Path):
    return rows_of(out / "documents/train/new.jsonl")


def conversations(out: Path):
    return rows_of(out / "conversations.jsonl")


def rows_of(file: Path):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_dialogues_take_chunks_and_styles(run):
    out, funnel = run("dialogue", texts=[(SENTENCE + "\n") * 20], chunk_tokens=120)
    found = documents(out)
    # 20 lines of 14 words: eight lines a chunk.
    assert [row["id"].partition("/")[0] for row in found] == ["page0#0", "page0#1", "page0#2"]
    assert {row["text"] for row in found} == {TALK}
    assert funnel["steps"]["dialogues"]["items_kept"] == 3


def test_all_seven_styles_of_a_chunk(run):
    out, _ = run("dialogue", texts=[PAGE], all_styles=True)
    assert len({row["metadata"]["style"] for row in documents(out)}) == 7


@pytest.mark.parametrize(
    ("said", "reason"),
    [("Teacher: hm\nStudent: oh", "too_short"), (SENTENCE * 6, "no_dialogue")],
)
def test_what_is_no_dialogue_is_dropped(run, said, reason):
    script = lambda body: said if "number 1" in asked(body) else TALK  # noqa: E731
    _, funnel = run("dialogue", script, texts=[PAGE + "number 1", PAGE + "number 2"])
    assert funnel["steps"]["dialogues"]["dropped"] == {reason: 1}


def test_diverse_qa_puts_pairs_behind_the_page(run):
    out, funnel = run("diverse_qa", texts=[PAGE] * 12)
    for row in documents(out):
        assert row["text"].startswith(PAGE.strip() + "\n\nQuestion: ")
        assert set(row["metadata"]["kinds"]) <= {pair["kind"] for pair in PAIRS}
        assert row["text"].count("Question: ") in (1, 2)
    assert funnel["parts_dropped"] == {"repeated_question": 12}
    # 84 words allow max(1, 10 * 84 / 150) = 5 pairs; how many of 2 stay is up to chance.
    assert {row["text"].count("Question: ") for row in documents(out)} == {1, 2}


def test_pairs_that_cannot_stand_are_left_out(run):
    pairs = [
        {"kind": "yes_no", "question": "Is two even?", "answer": "Yes."},
        {"kind": "yes_no", "question": " is TWO even? ", "answer": "Again."},
        {"kind": "open_ended", "question": "word " * 500, "answer": "Too much."},
        {"kind": "open_ended", "question": "Why?", "answer": "why?"},
        {"kind": "open_ended", "question": "What?", "answer": " "},
    ]
    out, funnel = run("diverse_qa", lambda _: json.dumps({"pairs": pairs}), texts=[PAGE])
    reasons = ["repeated_question", "long_question", "answer_is_question", "empty_pair"]
    assert funnel["parts_dropped"] == dict.fromkeys(reasons, 1)
    assert documents(out)[0]["metadata"]["kinds"] == ["yes_no"]


@pytest.mark.parametrize("style", ["wikipedia", "distil", "extract", "list"])
def test_rephrasing_is_stripped_of_what_is_around_it(run, style):
    out, _ = run("rephrase", texts=[PAGE], style=style, min_tokens=10)
    [row] = documents(out)
    assert "whole number." in row["text"]
    assert not row["text"].startswith(("Here", "#", "*"))
    assert row["metadata"] == {"style": style}


def test_long_documents_end_with_questions_about_a_tenth_of_their_chunks(run):
    long = "".join(f"Line {i}: {SENTENCE}\n" for i in range(200))
    out, funnel = run(
        "long_document_qa", texts=[long, "short"], min_document_tokens=2000, chunk_tokens=100
    )
    [row] = documents(out)
    assert row["text"].startswith(long.rstrip() + "\n\nQuestion: ")
    assert funnel["steps"]["documents"]["dropped"] == {"short_document": 1}
    # 17 words a line, five lines a chunk: 40 chunks, 4 of them asked about.
    assert row["text"].count("Question: ") == row["metadata"]["pairs"] == 4
    assert funnel["calls"] == {"writer": 4}


def test_stem_grows_answers_and_rewrites(run):
    seeds = [
        {"question": "How many apples are left if Ann eats two of her seven apples today?"},
        {"question": "how many apples are left if Ann eats two of her seven apples today?"},
        {"question": "A train leaves at noon and goes sixty miles an hour; when is it there?"},
    ]
    out, funnel = run("stem", rows=seeds, rounds=[["similar", "harder", "varied"]] * 2)
    # Two different seeds; each round adds three to every question: 2, 8, 32.
    steps = funnel["steps"]
    assert steps["seeds"]["dropped"] == {"duplicate_seed": 1}
    assert [step["items_in"] for step in steps.values()][:8] == [3, 2, 2, 2, 8, 8, 8, 30]
    assert steps["answers"]["items_kept"] == 30
    talks = conversations(out)
    assert len(talks) == 30 + steps["multiple choice"]["items_kept"]
    assert 0 < steps["multiple choice"]["items_in"] < 15
    first, last = talks[0]["messages"], talks[-1]
    assert first[1]["reasoning_content"] == "Counting."
    assert last["metadata"]["form"] in ("choice of 4", "choice of 10")
    assert "\nB. 1\n" in last["messages"][0]["content"]
    assert len(documents(out)) == len(talks)


def test_stem_questions_that_repeat_are_left_out(run):
    script = lambda body: (  # noqa: E731
        {"choices": author(body)["choices"]}
        if "Answer the question." in asked(body)
        else json.dumps({"questions": ["How far does a train go in two hours at sixty an hour?"]})
    )
    seeds = [{"question": f"Seed number {i} asks for something quite its own, {i}?"} for i in "abc"]
    _, funnel = run("stem", script, rows=seeds, rounds=[["similar"]], choice_share=0)
    assert funnel["parts_dropped"] == {"duplicate_question": 2}
    assert funnel["steps"]["answers"]["items_in"] == 1


def test_reasoning_items_are_settled_by_vote(run):
    seeds = [{"question": f"All of {i} are here. Who?", "options": ["x", "y"]} for i in range(5)]
    out, funnel = run("reasoning", rows=seeds, num_votes=8, min_agreement=0.6)
    votes = funnel["steps"]["votes"]
    assert votes["items_in"] == 5
    assert votes["items_kept"] + votes["dropped"].get("no_majority", 0) == 5
    for row in conversations(out):
        assert row["messages"][1]["content"].endswith("The answer is (A)")
        assert row["metadata"]["agreement"] > 0.6
    assert funnel["calls"] == {"writer": 5, "voter": 40}


def test_a_tied_vote_settles_nothing(run):
    def script(body):
        if "Solve this" not in asked(body):
            return author(body)
        script.votes += 1
        if "town" in asked(body) and script.votes % 2:
            return "The answer is (A)"
        return "The answer is B."

    script.votes = 0
    seeds = [{"question": "All are here. Who?", "options": ["x", "y"]}] * 2
    seeds[1] = {"question": "None of the other ones is there. Where?", "options": ["x", "y"]}
    with pytest.raises(Exception, match=r"votes: 2 in, 0 kept, 2 no_majority"):
        run("reasoning", script, rows=seeds, num_votes=8)


CODE = "\n".join(f"def part{i}(x):\n    return x + {i}\n" for i in range(5))


def test_code_questions_have_solutions_that_parse(run):
    out, funnel = run("code_qa", texts=[CODE], metadata={"url": "https://x.test/a.py"})
    [row] = conversations(out)
    assert row["messages"][1]["content"] == SOLUTION
    assert row["metadata"] == {"language": "python"}
    assert funnel["calls"] == {"writer": 1, "solver": 1}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("No code here.", "no_code"),
        ("```python\ndef f(:\n  x\n  y\n```", "does_not_parse"),
        ("```python\ndef f(x):\n    # your code here\n    pass\n```", "unfinished_code"),
        (f"```python\n{CODE}\n```", "copied_snippet"),
    ],
)
def test_solutions_that_are_none_are_dropped(run, answer, reason):
    def script(body):
        bad = "total_of_bad" in asked(body)
        if "Let it inspire" in asked(body):
            name = "total_of_bad" if "part0" in asked(body) else "fine"
            return json.dumps({"question": f"Write the Python function {name} that adds numbers."})
        return answer if bad else SOLUTION

    good = CODE.replace("part", "piece")
    _, funnel = run("code_qa", script, texts=[CODE, good], metadata={"language": "Python"})
    assert funnel["steps"]["solutions"]["dropped"] == {reason: 1}


def test_tool_conversations_are_played_to_their_end(run):
    out, funnel = run("tool_calls", rows=[{"tools": TOOLS}], conversations_per_set=2)
    assert funnel["steps"]["conversations"]["items_kept"] == 2
    row = conversations(out)[0]
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    [call] = row["messages"][1]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}
    assert row["messages"][2] == {
        "role": "tool",
        "tool_call_id": call["id"],
        "content": '{"degrees": 4}',
    }
    assert row["tools"][0]["function"]["name"] == "weather"
    assert not (out / "documents").exists()


TOOLS = [
    {
        "name": "weather",
        "description": "Tells the temperature.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"calls": [{"name": "wether", "arguments": {}}], "message": ""}, "unknown_tool"),
        ({"calls": [{"name": "weather", "arguments": {}}], "message": ""}, "wrong_arguments"),
        (
            {"calls": [{"name": "weather", "arguments": {"city": "x", "y": 1}}], "message": ""},
            "unknown_argument",
        ),
        (
            {"calls": [{"name": "weather", "arguments": {"city": "x"}}] * 2, "message": ""},
            "repeated_call",
        ),
        ({"calls": [], "message": " "}, "empty_turn"),
        ({"calls": [], "message": "I know: 4 degrees."}, "no_call"),
        ({"calls": "none", "message": "x"}, "invalid_json"),
    ],
)
def test_turns_that_break_a_rule_end_the_conversation(run, turn, reason):
    def script(body):
        prompt = asked(body)
        if "You are an assistant" in prompt and "BAD" in prompt:
            return json.dumps(turn)
        if "You play a user" in prompt and "conversation so far" not in prompt:
            word = "BAD" if script.users == 0 else "GOOD"
            script.users += 1
            return json.dumps({"satisfied": False, "message": f"How warm? {word}"})
        return author(body)

    script.users = 0
    _, funnel = run("tool_calls", script, rows=[{"tools": TOOLS}], conversations_per_set=2)
    assert funnel["steps"]["conversations"]["dropped"] == {reason: 1}


def test_arguments_may_be_free_where_the_schema_says_so():
    free = {"name": "tag", "parameters": {"additionalProperties": {"type": "string"}}}
    check_turn([free], [], Turn(calls=[Call(name="tag", arguments={"colour": "red"})], message=""))
    with pytest.raises(Unusable, match="wrong_arguments"):
        check_turn([free], [], Turn(calls=[Call(name="tag", arguments={"n": 1})], message=""))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"properties": {"a": {"$ref": "#/components/schemas/Pet"}}}, r"\$ref '#/components/sch"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1/a.json"}}}, r"\$ref 'http://127.0.0.1/a"),
        ([{"type": "object"}], "are a JSON schema, an object"),
        ({"type": "thing"}, "needs a name and a JSON schema: 'thing' is not valid"),
    ],
)
def test_tools_that_cannot_be_checked_are_refused_before_the_first_call(run, parameters, message):
    with pytest.raises(DataError, match=message):
        run("tool_calls", rows=[{"tools": [{"name": "f", "parameters": parameters}]}])


def test_translation_goes_line_by_line(run):
    text = "# Even numbers\n\n- Two is even.\n\n```\nx = 2\n```\n    y = 3;\nhttps://x.test/a\n42"
    out, funnel = run("translate", texts=[text], languages=["de"])
    [row] = documents(out)
    assert row["text"] == (
        "und # Even numbers\n\n- und Two is even.\n\n```\nx = 2\n```\n    y = 3;\n"
        "https://x.test/a\n42"
    )
    assert row["metadata"]["language"] == "de"
    assert funnel["calls"] == {"writer": 2}


def test_conversations_are_translated_but_not_their_reasoning(run):
    talk = [
        {"role": "user", "content": "What is two?"},
        {"role": "assistant", "content": "Even.", "reasoning_content": "Think of two."},
        {"role": "tool", "content": '{"a": 1}'},
    ]
    out, _ = run("translate", rows=[{"messages": talk, "tools": TOOLS}], languages=["de"])
    [row] = conversations(out)
    assert [message["content"] for message in row["messages"]] == [
        "und What is two?",
        "und Even.",
        '{"a": 1}',
    ]
    assert row["messages"][1]["reasoning_content"] == "Think of two."
    assert row["tools"] == TOOLS


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("und ohne Klammern", "no_brackets"),
        ("〘und〙 oder 〘und〙", "no_brackets"),
        ("〘 〙", "empty_translation"),
        ("〘" + "und so weiter " * 30 + "〙", "length_of_translation"),
        ("〘still English〙", "other_language"),
    ],
)
def test_lines_that_are_no_translation_drop_the_document(run, said, reason):
    script = lambda body: said if "Bad" in asked(body) else "〘gut und schön〙"  # noqa: E731
    _, funnel = run("translate", script, texts=["Bad page.", "Good page."], languages=["de"])
    assert funnel["steps"]["translations"]["dropped"] == {reason: 1}


def test_academic_items_come_from_snippets_near_the_queries(run):
    pytest.importorskip("milvus_lite")
    texts = [
        "Groups rings fields ideals. " * 20 + "algebra",
        "Cells membranes enzymes proteins. " * 20 + "biology",
        "Rings modules ideals groups. " * 20 + "modules",
    ]
    queries = [{"text": "ideals of rings and groups"}]
    out, funnel = run("academic_qa", texts=texts, rows=queries, neighbours=2, min_snippet_tokens=5)
    found = conversations(out)
    assert [row["id"].partition("#")[0] for row in found] == ["page0", "page2"]
    for row in found:
        choice = row["metadata"]["form"] == "choice"
        assert ("\nB. x\n" in row["messages"][0]["content"]) == choice
        assert ("The answer is (B) x" in row["messages"][1]["content"]) == choice
    assert (out.parent / "cache" / "snippets.db").exists()
    assert funnel["steps"]["items"]["items_in"] == 2


def test_every_generator_is_here():
    source = Path(__file__).read_text()
    assert not [name for name in GENERATORS if f'"{name}"' not in source]
