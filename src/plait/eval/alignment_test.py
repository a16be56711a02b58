"""Held-out scores of alignment as the report shows them."""

import json
from xml.etree import ElementTree

import pytest

from plait.eval.alignment import alignment_figures, alignment_rows
from plait.eval.fixture_test import write_stage
from plait.eval.read import read_stage
from plait.eval.report import write_report


@pytest.fixture
def run(tmp_path):
    lines = [
        {"step": s, "eval.reward.think": 2.0 * s, "eval.gold.think": 0.5 + s / 20, "eval.choice": 1}
        for s in (0, 5, 10)
    ]
    lines.insert(1, {"step": 5, "tokens": 64, "loss": 0.5, "learning_rate": 1e-3, "reward": 1.0})
    found = {"before.gold.think": 0.5, "after.gold.think": 0.75, "after.choice": 1.0}
    write_stage(tmp_path, "11_rlhf", "grpo", lines=lines, chosen_step=5.0, **found)
    rounds = {
        f"held_out.reward.no_think.round_{n}": value for n, value in enumerate((0.3, 0.4, 0.7))
    }
    write_stage(tmp_path, "09_dpo", "dpo", **rounds, loss=0.4)
    write_stage(tmp_path, "10_reward", "reward", **{"held_out.accuracy": 0.91})
    merge = write_stage(tmp_path, "12_merge", "merge", alpha=0.5, kept=0.97)
    points = [{"alpha": a, "scores": {"tools": 1 - a}, "kept": 1 - a} for a in (0.0, 0.5, 1.0)]
    (merge / "sweep.json").write_text(json.dumps({"chosen": 0.5, "points": points}))
    write_stage(tmp_path, "05_sft", "sft", loss=0.1)
    return tmp_path


def test_each_stage_has_its_row_before_and_after(run):
    rows = [row for path in sorted(run.iterdir()) for row in alignment_rows(read_stage(path))]
    assert [(row.stage, row.before, row.after) for row in rows] == [
        ("09_dpo", 0.3, 0.7),
        ("10_reward", None, 0.91),
        ("11_rlhf", 0.5, 0.75),
        ("12_merge", None, 0.97),
    ]
    assert rows[0].score == "reward, thinking off, 2 rounds"
    assert rows[2].score == "gold, thinking on"


def test_reward_and_gold_share_a_figure_and_the_chosen_step_is_said(run):
    (figure,) = alignment_figures(read_stage(run / "11_rlhf"))
    ElementTree.fromstring(figure.svg)
    assert ">reward</text>" in figure.svg
    assert ">gold</text>" in figure.svg
    assert "step 5, chosen by other held-out prompts" in figure.caption


def test_the_page_shows_rounds_sweep_and_table(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("<h2>Alignment</h2>") == 1
    for text in ("rounds of pairs", "share of the other", "kept, worst task"):
        assert f">{text}</text>" in page
    assert "<td>0.300</td><td>0.700</td>" in page
    assert alignment_rows(read_stage(run / "05_sft")) == []


def test_a_stage_that_is_not_finished_shows_nothing(tmp_path):
    for name, kind in (("09_dpo", "dpo"), ("11_rlhf", "grpo"), ("12_merge", "merge")):
        stage = read_stage(write_stage(tmp_path, name, kind, finished=False))
        assert (alignment_rows(stage), alignment_figures(stage)) == ([], [])
