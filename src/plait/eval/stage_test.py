"""The stage on a tiny random model: what it writes, returns and refuses."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from plait.core.errors import ConfigError, DataError
from plait.data.train_tokenizer import train_tokenizer
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.eval.run import Question
from plait.eval.stage import EvalSettings, completions, read_bits_per_byte, row_names, run
from plait.model.hf import save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

SETTINGS = EvalSettings(
    num_questions=4, budgets=(0, 3), max_tokens=8, max_num_seqs=4, num_threads=1
)
NAMES = ["think", "no_think", "budget_0", "budget_3"]
FAMILIES = ("sum", "count", "largest")


def held_out_question(index):
    return {
        "id": f"q{index}",
        "family": FAMILIES[index % 3],
        "prompt": [{"role": "user", "content": f"Let R={index}, B=2. What is the sum?"}],
        "verifier": "number",
        "reference": str(index + 2),
    }


def write_questions(folder, questions):
    (folder / "data").mkdir(parents=True)
    text = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / "data" / "test.jsonl").write_text(text)
    return folder


def write_metrics(folder, evaluations):
    lines = [{"step": 1, "tokens": 10, "loss": 5.0}]
    lines += [
        {"step": step, "eval.bits_per_byte.web": bits, "eval.bits_per_byte.code": bits / 2}
        for step, bits in evaluations.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = train_tokenizer(["Let R=7, B=2. What is the sum?"] * 3, vocab_size=287)
    tokenizer.save(folder / "tokenizer")
    spec = ModelSpec.preset("test", vocab_size=tokenizer.vocab_size)
    model = init_weights(HybridLM(spec), 3)
    save(model, folder / "sft" / "model", tokenizer_from=folder / "tokenizer")
    write_questions(folder / "sft", [held_out_question(i) for i in range(7)])
    write_metrics(folder / "pretrain", {0: 7.5, 20: 3.0, 40: 2.5})
    return {"model": folder / "sft", "pretrain": folder / "pretrain"}


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("eval")
    return out, run(SETTINGS, inputs, out)


def test_summary_has_every_key(finished):
    _, summary = finished
    expected = {"well_formed", "num_questions"}
    for name in NAMES:
        expected |= {f"accuracy.{name}", f"tokens.{name}", f"well_formed.{name}"}
        expected |= {f"accuracy.{name}.{family}" for family in FAMILIES}
    for category in ("web", "code"):
        expected |= {f"bits_per_byte.{category}", f"bits_per_byte_before.{category}"}
    assert set(summary) == expected
    assert summary["num_questions"] == 4
    assert (summary["bits_per_byte_before.web"], summary["bits_per_byte.web"]) == (7.5, 2.5)
    assert all(isinstance(value, float) for value in summary.values())


def test_scores_and_answers_tell_the_same_story(finished):
    out, summary = finished
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    results = {
        result["setting"]: result
        for result in json.loads((out / "scores.json").read_text())["results"]
    }
    assert list(results) == NAMES + [name + ".free" for name in NAMES]
    for name, result in results.items():
        own = [answer for answer in answers if answer["setting"] == name]
        assert len(own) == result["num_questions"] == 4
        assert result["accuracy"] == sum(answer["score"] for answer in own) / 4
        assert result["total_tokens"] == sum(answer["num_tokens"] for answer in own) / 4
    assert results["budget_3"]["budget"] == 3
    assert results["budget_3.free"]["free_think_tags"]
    for name in NAMES:
        assert summary[f"accuracy.{name}"] == results[name]["accuracy"]
        assert summary[f"tokens.{name}"] == results[name]["total_tokens"]
        assert summary[f"well_formed.{name}"] == results[f"{name}.free"]["well_formed"]


def test_the_engine_obeys_the_switch_and_the_budget(finished):
    out, _ = finished
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    by_setting = {name: [a for a in answers if a["setting"] == name] for name in NAMES}
    for answer in by_setting["no_think"]:
        assert answer["reasoning"] is None
        assert answer["well_formed"]
    for answer in by_setting["budget_0"]:
        assert (answer["reasoning"], answer["num_reasoning_tokens"]) == ("", 0)
        assert answer["well_formed"]
    assert all(answer["reasoning"] is not None for answer in by_setting["think"])
    assert all("/think" not in answer["question"] for answer in answers)


def test_a_second_run_writes_the_same_bytes(finished, inputs, tmp_path):
    out, summary = finished
    assert run(SETTINGS, inputs, tmp_path) == summary
    for name in ("scores.json", "answers.jsonl"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_a_panel_and_the_checkpoint_before_traces_were_cut(inputs, tmp_path):
    held_out = [held_out_question(i) for i in range(3)]
    message = [{"role": "user", "content": "Delete it"}]
    tools = [{"type": "function", "function": {"name": "delete", "parameters": {}}}]
    reference = json.dumps({"calls": [{"name": "delete", "arguments": {}}]})
    common = {"id": "t", "family": "delete", "prompt": message}
    held_out += [common | {"tools": tools, "verifier": "toolcall", "reference": reference}]
    nothing = json.dumps({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
    held_out += [common | {"verifier": "instruction", "reference": nothing}]
    panel = write_questions(tmp_path / "tools", held_out)
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "model").symlink_to(inputs["model"] / "model")
    more = {"panel": panel, "checkpoints": tmp_path / "earlier", "uncut": tmp_path / "earlier"}
    summary = run(SETTINGS, inputs | more, tmp_path / "out")

    columns = {"chains.think", "chains.no_think", "tool_calls.exact", "instructions.strict"}
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(scores["panel"]) == ["earlier", "sft"]
    assert set(scores["panel"]["sft"]) == columns
    assert scores["panel"]["earlier"] == scores["panel"]["sft"]  # the same weights
    assert summary["tool_calls.exact"] == 0.0
    assert summary["instructions.strict"] == summary["panel.earlier.instructions.strict"]
    assert {r["setting"] for r in scores["uncut"]} == {name + ".free" for name in NAMES}
    for name in NAMES:
        assert summary[f"uncut.well_formed.{name}"] == summary[f"well_formed.{name}"]


@pytest.mark.parametrize("thinking", [None, False])
def test_questions_are_asked_with_their_tools(inputs, thinking):
    engine = Engine.from_path(inputs["model"] / "model")
    tools = [{"type": "function", "function": {"name": "delete", "parameters": {}}}]
    plain = Question("q", "f", [{"role": "user", "content": "Delete it"}], "toolcall", "")
    params = SamplingParams(max_tokens=1)
    found = completions(engine, [plain, plain._replace(tools=tools)], params, thinking)
    lengths = [len(each.prompt_ids) for each in found]
    assert lengths[1] > lengths[0] + 20


def test_a_panel_may_have_questions_of_one_kind_only(inputs, tmp_path):
    panel = write_questions(tmp_path / "panel", [held_out_question(0)])
    settings = SETTINGS.model_copy(update={"num_questions": 1, "budgets": ()})
    summary = run(settings, inputs | {"panel": panel}, tmp_path / "out")
    names = [name for name in summary if name.startswith(("panel", "tool", "instr"))]
    assert names == ["panel.sft.chains.think", "panel.sft.chains.no_think"]


def test_checkpoints_of_the_same_name_have_rows_of_their_own(inputs, tmp_path):
    earlier = {}
    for run_name, role in (("a", "checkpoints"), ("b", "checkpoints.b")):
        earlier[role] = tmp_path / run_name / "sft"
        earlier[role].mkdir(parents=True)
        (earlier[role] / "model").symlink_to(inputs["model"] / "model")
    panel = {"panel": write_questions(tmp_path / "panel", [held_out_question(0)])}
    settings = SETTINGS.model_copy(update={"num_questions": 1, "budgets": ()})
    run(settings, inputs | panel | earlier, tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    last = f"{inputs['model'].parent.name}/sft"
    assert list(scores["panel"]) == ["a/sft", "b/sft", last]


def test_rows_are_called_by_as_much_of_a_path_as_it_takes():
    assert list(row_names([Path("x/05_sft"), Path("06")]).values()) == ["05_sft", "06"]
    assert list(row_names([Path("x/05"), Path("y/05")]).values()) == ["x/05", "y/05"]
    same = Path("x").absolute()
    assert set(row_names([Path("x"), same]).values()) == {"/".join(same.parts)}


LONG = [{"role": "user", "content": "7" * 1024}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reference": "seven"}, "question 'q1': reference 'seven' .* holds no number"),
        ({"verifier": "choice"}, "question 'q1': reference '3' .* is no letter"),
        ({"verifier": "program"}, r"question 'q1': .* is neither .*test"),
        ({"verifier": "maths", "reference": " "}, "question 'q1': .* is empty"),
        pytest.param(
            {"verifier": "maths", "reference": "$"},
            "question 'q1': .* is no expression",
            marks=pytest.mark.skipif(not find_spec("math_verify"), reason="math-verify"),
        ),
        ({"prompt": LONG}, r"question 'q1': its prompt has 1,\d+ tokens.* 1,024 tokens"),
        ({"prompt": [{"role": "judge", "content": ""}, *LONG]}, "'q1': the chat template"),
    ],
)
@pytest.mark.parametrize("role", ["questions", "panel"])
def test_bad_questions_are_refused_before_any_is_asked(
    inputs, tmp_path, monkeypatch, role, changed, message
):
    monkeypatch.setattr(Engine, "from_path", lambda *_, **__: pytest.fail("loaded"))
    asked = [held_out_question(0), held_out_question(1) | changed]
    folder = write_questions(tmp_path / "asked", asked)
    with pytest.raises(DataError, match=message):
        run(SETTINGS, inputs | {role: folder}, tmp_path / "out")


@pytest.mark.parametrize("evaluations", [{}, {0: 7.0}, {20: 3.0, 40: 2.5}])
def test_missing_bits_per_byte_are_refused(inputs, tmp_path, evaluations):
    write_metrics(tmp_path / "pretrain", evaluations)
    with pytest.raises(DataError, match="at step 0 and at a later step"):
        run(SETTINGS, inputs | {"pretrain": tmp_path / "pretrain"}, tmp_path / "out")
    with pytest.raises(DataError, match="no readable metrics"):
        read_bits_per_byte(tmp_path / "metrics.jsonl")


def test_wrong_budgets_are_refused():
    for budgets in ([4, 0], [-1], [2, 2]):
        with pytest.raises(ConfigError, match="rising"):
            EvalSettings.parse({"budgets": budgets}, "06_eval.toml")
