"""Every shipped recipe is read, checked and, where it trains, built on the meta device."""

import json
from pathlib import Path

import pytest

from plait.align.public_sets import FORMS
from plait.cli.align import VERBS
from plait.cli.run import STAGES, check_recipe
from plait.compress.distill_stage import DistillSettings
from plait.compress.search import candidates
from plait.compress.stage import CompressSettings
from plait.core.recipe import read_recipe
from plait.core.sizes import parse_bytes
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.synth.settings import SynthSettings
from plait.train.pretrain import PretrainSettings

RECIPES = sorted(path for path in (Path(__file__).parent.parent / "recipes").iterdir())
VOCABULARY = {"tiny": 2048, "nano-12b-v2": 131_072}
PARAMETERS = {"nano-12b-v2": 12_310_001_152}


@pytest.fixture(autouse=True)
def paths_exist(tmp_path, monkeypatch):
    """Stand where every path that a recipe takes as input exists."""
    for stage in (stage for directory in RECIPES for stage in read_recipe(directory).stages):
        for source in stage.inputs.values():
            if "/" in source:
                (tmp_path / source).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("directory", RECIPES, ids=lambda path: path.name)
def test_recipe_is_checked_and_its_model_builds(directory):
    stages = check_recipe(read_recipe(directory))
    for stage in stages:
        assert json.loads(stage.settings.model_dump_json())
    trained = [s.settings for s in stages if isinstance(s.settings, PretrainSettings)]
    for settings in trained:
        if settings.model is not None:
            spec = settings.spec(VOCABULARY[directory.name])
            model = HybridLM(spec, device="meta")
            count = sum(p.numel() for p in model.parameters())
            assert count == spec.num_parameters == PARAMETERS.get(directory.name, count)
    assert trained or directory.name in ("curate-debian", "nano-9b-v2")


def test_the_report_s_numbers():
    stages = {
        s.file.key: s.settings for s in check_recipe(read_recipe(RECIPES[0].parent / "nano-12b-v2"))
    }
    pretrain, extend, blend = stages["pretrain"], stages["extend"], stages["blend"]
    assert isinstance(pretrain, PretrainSettings)
    assert pretrain.tokens_per_step == 6_029_312
    assert pretrain.total_tokens == 20 * 10**12
    assert pretrain.decay_tokens == 36 * 10**11
    assert [phase.until for phase in blend.phases] == [0.6, 0.9, 1.0]
    # The report's 13, mathematics in its two subsets.
    assert len(blend.phases[0].weights) == 14
    made = {name for kind, c in stages["curate"].categories.items() for name in c.made(kind)}
    made |= {s.category for s in stages.values() if isinstance(s, SynthSettings)}
    later = {"long-document-qa", "tool-calls"}  # for the long-context phase and for fine-tuning
    assert {name for phase in blend.phases for name in phase.weights} == made - later
    assert extend.schedule.num_steps == 3004
    assert extend.schedule.rate(0) == extend.schedule.rate(3003) == 4.5e-6


def test_the_report_s_alignment():
    stages = {s.file.key: s for s in check_recipe(read_recipe(RECIPES[0].parent / "nano-12b-v2"))}
    order = "sft sft_tools sft_long ifeval_rl dpo reward rlhf merge"
    assert list(stages)[-8:] == order.split()
    settings = {key: stage.settings for key, stage in stages.items()}
    fine_tuning = [settings[key] for key in order.split()[:3]]
    assert [each.packing for each in fine_tuning] == ["separate", "off", "separate"]
    assert [each.tokens_per_batch for each in fine_tuning] == [131_072] * 3
    assert [each.traces.reasoning_off_share for each in fine_tuning] == [0.1, 0, 0]
    assert [each.traces.truncated_share > 0 for each in fine_tuning] == [False, False, True]
    assert fine_tuning[2].traces.truncated_tokens == (1000, 2000)
    follow = settings["ifeval_rl"]
    assert follow.num_steps * follow.accumulation * follow.prompts_per_batch == 16_000
    assert settings["dpo"].rounds.workbench.num_distractors == 27
    assert 0 < settings["rlhf"].thinking_share < 1
    assert settings["merge"].alphas == tuple(n / 10 for n in range(1, 10))
    forms = {name.partition(":")[0] for s in settings.values() for name in getattr(s, "files", ())}
    assert forms & set(FORMS) == set(FORMS) - {"chat_prompts", "when2call_preferences"}


def test_the_alignment_of_both_models_reads_the_same_way():
    """Nothing but the lengths of answers differs between the 12B's and the 9B's."""
    both = []
    for name in ("nano-12b-v2", "nano-9b-v2"):
        stages = {s.key: s.table for s in read_recipe(RECIPES[0].parent / name).stages}
        both.append([stages[key] for key in ("dpo", "rlhf", "reward")])
    for one, other in zip(*both, strict=True):
        assert set(other) <= set(one)
        for key in ("beta", "num_rounds", "policy", "learning_rate", "files", "group_size"):
            assert one.get(key) == other.get(key)


def test_the_report_s_compression():
    recipe = read_recipe(RECIPES[0].parent / "nano-9b-v2")
    stages = {s.file.key: s.settings for s in check_recipe(recipe)}
    order = "compress_depth distill_depth compress_width distill_width dpo grpo distill_repair"
    assert list(stages) == [*order.split(), "reward", "rlhf", "merge"]
    counts = [
        (phase.tokens, phase.sequence_tokens)
        for settings in stages.values()
        if isinstance(settings, DistillSettings)
        for phase in settings.phases
    ]
    billion = 10**9
    assert counts == [
        (60 * billion, 8192),
        (50 * billion, 8192),
        (25 * billion, 49_152),
        (1 * billion, 262_144),
        (4 * billion // 10, 262_144),
    ]
    width = stages["compress_width"]
    assert isinstance(width, CompressSettings)
    per_candidate = width.healing.num_steps * width.healing.accumulation * width.row_tokens
    assert per_candidate == pytest.approx(19 * billion, rel=0.001)
    nine = ModelSpec.preset("nano-9b-v2")
    parent = ModelSpec.preset("nano-12b-v2", pattern=nine.pattern)
    found = candidates(
        parent, [tuple(range(56))], width.ranges, width.workload, parse_bytes(width.memory)
    )
    [child] = [candidate.spec for candidate in found if candidate.spec == nine]
    model = HybridLM(child, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 8_888_227_328


def test_every_kind_of_stage_is_run():
    """By the tiny recipe, as a verb of its own, or in cli/synth_test and cli/curate_stage_test."""
    tiny = read_recipe(RECIPES[0].parent / "tiny")
    assert {s.kind for s in tiny.stages} | {verb.__name__ for verb in VERBS} | {
        "synth",
        "student",
        "decontaminate",
    } == set(STAGES)
