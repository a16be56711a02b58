"""Every thinking budget from 0 to 200 on the tiny recipe's reasoning model.

With a finished `make demo` in runs/tiny it is the trained model, else the test-sized one, which
knows next to nothing: its traces have to be cut.
"""

from pathlib import Path

import pytest

from plait.engine.engine import Engine
from plait.engine.request import SamplingParams

pytestmark = pytest.mark.slow
GRACE, ANSWER = 20, 24
TRAINED = Path(__file__).parent.parent / "runs" / "tiny" / "05_sft"
QUESTION = "Cards: R7, B2, K9, D4, A3, C5.\nLast digit of the sum of D, R, B, K?"


@pytest.fixture(scope="module")
def engine(request) -> Engine:
    folder = TRAINED
    if not (folder / "manifest.json").is_file():
        folder = request.getfixturevalue("run_directory") / "05_sft"
    return Engine.from_path(folder / "model", max_num_seqs=64, max_context=512)


@pytest.mark.parametrize("rule", ["newline", "hard"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_budget_gives_well_formed_output(engine, rule, temperature):
    grace = GRACE if rule == "newline" else 0
    params = [
        SamplingParams(
            temperature=temperature,
            seed=budget,
            max_thinking_tokens=budget,
            budget_rule=rule,
            budget_grace_tokens=GRACE,
            max_tokens=budget + grace + ANSWER,
            min_answer_tokens=8,
            ignore_eos=budget % 2 == 1,  # half of them are written until they are cut
        )
        for budget in range(201)
    ]
    prompts = [[{"role": "user", "content": QUESTION}]] * len(params)
    num_forced = 0
    for budget, completion in enumerate(engine.generate(prompts, params)):
        assert completion.well_formed
        assert completion.text.count("</think>") == 1
        assert "<think>" not in completion.text
        assert completion.num_reasoning_tokens <= budget + grace
        assert completion.content
        num_forced += any(completion.forced)
    assert num_forced > 5
