"""The whole path, small: raw pages to a model that answers, and what survives a kill."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mini_recipe import ARGUMENTS, RECIPE

from plait.core.run_folder import read_manifest

PLAIT = str(Path(sys.executable).with_name("plait"))
STAGES = ["01_curate", "02_tokenizer", "03_blend", "04_pretrain", "05_sft"]
STAGES += ["06_sft_tools", "07_sft_long", "08_ifeval_rl"]
STAGES += ["09_dpo", "10_reward", "11_rlhf", "12_merge"]
STAGES += ["13_compress", "14_distill", "15_eval", "16_eval_child"]


def test_every_stage_finishes(run_directory):
    assert sorted(path.name for path in run_directory.iterdir() if path.is_dir()) == STAGES
    for stage in STAGES:
        assert read_manifest(run_directory / stage)["product"]


def test_summary_has_the_promised_keys(run_directory):
    summary = json.loads((run_directory / "summary.json").read_text())
    promised = ["eval.accuracy.think", "eval.accuracy.no_think", "eval.accuracy.budget_0"]
    promised += ["eval.accuracy.budget_8", "eval.well_formed", "eval.bits_per_byte.english"]
    promised += ["compress.parameters", "compress.kl", "eval_child.accuracy.think"]
    promised += ["eval.tool_calls.exact", "eval.instructions.strict"]
    promised += ["eval.uncut.accuracy.budget_0", "ifeval_rl.after.reward.no_think"]
    promised += ["dpo.held_out.reward.no_think.round_2", "reward.held_out.accuracy"]
    promised += ["rlhf.before.gold.think", "rlhf.after.gold.no_think", "rlhf.chosen_step"]
    promised += ["merge.alpha", "merge.kept", "merge.score.letters.alpha_0.5"]
    promised += ["eval.bits_per_byte.code", "run.wall_s", "run.peak_memory_gib"]
    assert set(promised) <= set(summary)
    assert all(isinstance(value, float | int) for value in summary.values())
    for category in ("english", "code"):
        before = summary[f"eval.bits_per_byte_before.{category}"]
        assert summary[f"eval.bits_per_byte.{category}"] < before


def test_the_report_is_one_page_with_its_figures(run_directory):
    page = (run_directory / "report.html").read_text()
    assert page.count("<svg") >= 6
    assert "http-equiv" not in page
    assert "src=" not in page


def test_every_product_is_accounted_for_in_the_funnel(run_directory):
    funnel = json.loads((run_directory / "01_curate" / "funnel.json").read_text())
    assert funnel["categories"].keys() == {"english", "code"}


def test_the_model_answers_in_the_terminal(run_directory):
    lines = "/budget 4\nLargest of A, B?\n/no_think\nLargest of A, B?\n/exit\n"
    result = subprocess.run(
        [PLAIT, "chat", str(run_directory / "05_sft"), "--max-tokens", "8"],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "tokens/s" in result.stdout + result.stderr


def test_transformers_reads_what_we_write(run_directory):
    import torch
    import transformers

    import plait

    directory = run_directory / "05_sft" / "model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    for module in theirs.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("Cards: A1, B2.", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(ids).logits, plait.load(directory)(ids), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
def test_a_kill_in_any_stage_changes_nothing(run_directory, tmp_path):
    """SIGKILL once in every stage, then the same command again: the same bytes as uninterrupted."""
    command = [PLAIT, "run", str(RECIPE), "--out", str(tmp_path), *ARGUMENTS]
    command += ["--set", "curate.workers=2"]  # another process tree, the same documents
    seed = time.time_ns()
    rng = random.Random(seed)
    for stage in STAGES:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith((f"{stage}: starting", f"{stage}: resuming")):
                break
        # The run that took so long checked types, which makes some stages five times as slow.
        time.sleep(rng.uniform(0, 0.1) * read_manifest(run_directory / stage)["wall_s"])
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"seed {seed}: {stage} ended before its kill"
        process.stdout.close()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for stage in STAGES:
        products = [
            read_manifest(folder / stage)["product"]
            for folder in (tmp_path / "tiny", run_directory)
        ]
        for product in products:
            product.pop("scores/work.json", None)  # says when the parent's files were written
        assert products[0] == products[1], (seed, stage)
    assert not (tmp_path / "tiny" / ".old").exists()
