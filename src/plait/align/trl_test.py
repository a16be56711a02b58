"""Our losses against TRL's on TRL's own batches: same ids, same masks, same numbers.

TRL runs transformers' NemotronH (its dt clamp repaired), ours HybridLM on the same weights; policy
and reference differ, so that nothing is zero by construction.
"""

import pytest
import torch
from torch import nn

from plait.align.dpo_stage import dpo_loss
from plait.align.losses import group_advantages, policy_losses
from plait.align.preference import PairBatch, answer_logprobs
from plait.align.reward import RewardModel, reward_loss
from plait.data.pack import Sample, pack
from plait.data.train_tokenizer import train_tokenizer
from plait.model.hf import load, save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train.losses import next_token_loss

# TRL and what it imports warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["Cards: A1, B2. Last digit of the sum of A, B? Answer: 3\n</think>\n\n<think>\n"] * 9
PROMPTS = ["Add A, B.", "Largest?", "Cards: A1, B2. Last digit of the sum?", "Sum"]
CHOSEN = [" 3", " Answer: 2 of B", " 7\n", " Last digit"]
REJECTED = [" Answer: 9", " 4", " digit A", " 2"]
PAD = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model directory that both sides read."""
    directory = tmp_path_factory.mktemp("model")
    train_tokenizer(TEXTS, vocab_size=330).save(directory / "tokenizer")
    spec = ModelSpec.preset("test", vocab_size=330)
    save(
        init_weights(HybridLM(spec), 0), directory / "model", tokenizer_from=directory / "tokenizer"
    )
    return directory / "model"


def theirs(folder, noise=0.0):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = tuple(model.config.time_step_limit)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def ours(model, folder, tmp_path):
    """The same weights as HybridLM."""
    model.save_pretrained(tmp_path / "weights")
    return load(tmp_path / "weights", dtype=torch.float32)


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token_id = PAD
    return tokenizer


def arguments(config, tmp_path, **more):
    common = {
        "output_dir": str(tmp_path / "trl"),
        "per_device_train_batch_size": 4,
        "report_to": [],
        "use_cpu": True,
        "max_steps": 1,
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    return config(**(common | more))


def samples(ids, attended, counted):
    """Unpad rows of a TRL batch."""
    rows = []
    for row, here, weights in zip(ids, attended.bool(), counted, strict=True):
        rows.append(Sample(row[here].tolist(), weights[here].float().tolist()))
    return rows


def assert_same(ours, theirs):
    assert abs(float(theirs)) > 1e-3
    assert abs(float(ours) - float(theirs)) <= 1e-6 * max(1, abs(float(theirs)))


def test_sft(folder, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    policy = theirs(folder, 0.02)
    rows = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, CHOSEN, strict=True)]
    trainer = SFTTrainer(
        policy,
        arguments(SFTConfig, tmp_path, completion_only_loss=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(folder),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    want = trainer.compute_loss(policy, dict(batch))
    labels = batch["labels"]
    attended = batch.get("attention_mask", batch["input_ids"] != PAD)
    packed = pack(samples(batch["input_ids"], attended, labels != -100))
    got = next_token_loss(ours(policy, folder, tmp_path), packed)
    assert 0 < got.weight < attended.sum()
    assert_same(got.total / got.weight, want)


@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_dpo(folder, tmp_path, sft_weight):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference = theirs(folder, 0.02), theirs(folder)
    rows = [
        {"prompt": p, "chosen": c, "rejected": r}
        for p, c, r in zip(PROMPTS, CHOSEN, REJECTED, strict=True)
    ]
    more = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, sft_weight]}
    trainer = DPOTrainer(
        policy,
        reference,
        arguments(DPOConfig, tmp_path, beta=0.25, **(more if sft_weight else {})),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(folder),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    want = trainer.compute_loss(policy, dict(batch))
    sides = samples(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    packed = pack([sides[i] for n in range(4) for i in (n, n + 4)])
    with torch.no_grad():
        known = answer_logprobs(ours(reference, folder, tmp_path), packed).sums.view(-1, 2)
    got = dpo_loss(ours(policy, folder, tmp_path), PairBatch(packed, known), 0.25, sft_weight)
    assert_same(got.total / got.weight, want)


def test_reward(folder, tmp_path):
    from datasets import Dataset
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHPreTrainedModel
    from trl import RewardConfig, RewardTrainer

    class Classifier(GenericForSequenceClassification, NemotronHPreTrainedModel):
        @classmethod
        def _can_set_experts_implementation(cls):
            return True  # it looks for a decorator in the text of this module

    base = theirs(folder, 0.02)
    base.config.num_labels, base.config.pad_token_id = 1, PAD
    classifier = Classifier(base.config)
    classifier.model.load_state_dict(base.model.state_dict())
    for module in classifier.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = tuple(base.config.time_step_limit)
    nn.init.normal_(classifier.score.weight, generator=torch.Generator().manual_seed(1))
    rows = [
        {"chosen": p + c, "rejected": p + r}
        for p, c, r in zip(PROMPTS, CHOSEN, REJECTED, strict=True)
    ]
    trainer = RewardTrainer(
        classifier.eval(),
        arguments(RewardConfig, tmp_path),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(folder),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    want = trainer.compute_loss(classifier, dict(batch))
    sides = samples(batch["input_ids"], batch["attention_mask"], batch["attention_mask"])
    model = RewardModel(ours(base, folder, tmp_path))
    with torch.no_grad():
        model.score.weight.copy_(classifier.score.weight)
    packed = pack([sides[i] for n in range(4) for i in (n, n + 4)])
    got = reward_loss(model, PairBatch(packed, None))
    assert_same(got.total / got.weight, want)
    assert got.metrics["mean_reward"].item() == pytest.approx(
        trainer._metrics["eval"]["mean_reward"][0], rel=1e-5
    )


CASES = {
    "dapo": {"loss_type": "dapo"},
    "grpo": {"loss_type": "grpo"},
    "clip higher, kl": {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.05},
    "grpo with kl": {"loss_type": "grpo", "beta": 0.1},
    "sequence ratios": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "unscaled": {"loss_type": "dapo", "scale_rewards": "none"},
}


@pytest.mark.parametrize("case", CASES)
def test_grpo(folder, tmp_path, case):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    changes = CASES[case]
    rewards = {}

    def reward(completions, **_):
        # the answers' own letters, so that rewards differ within and between groups
        values = [float(sum(map(ord, text)) % 7) for text in completions]
        rewards["all"] = values
        return values

    policy = theirs(folder)
    trainer = GRPOTrainer(
        policy,
        reward,
        arguments(
            GRPOConfig,
            tmp_path,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=9,
            num_iterations=2,
            temperature=1.0,
            shuffle_dataset=False,
            **changes,
        ),
        train_dataset=Dataset.from_list([{"prompt": p} for p in PROMPTS]),
        processing_class=tokenizer_of(folder),
    )
    if trainer.ref_model is not None:
        for module in trainer.ref_model.modules():
            if hasattr(module, "time_step_limit"):
                module.time_step_limit = tuple(policy.config.time_step_limit)
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    # The update before: the policy is no longer the one that wrote the answers, some beyond clip.
    moved = theirs(folder, 0.02)
    policy.load_state_dict(moved.state_dict())
    want = trainer.compute_loss(policy, inputs)

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    counted = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], 1)
    answers = answer_logprobs(ours(policy, folder, tmp_path), pack(samples(ids, attended, counted)))
    kept = inputs["completion_mask"].bool()
    old = inputs["old_per_token_logps"][kept]
    reference = inputs["ref_per_token_logps"][kept] if "beta" in changes else None

    scaled = changes.get("scale_rewards") != "none"
    table = torch.tensor(rewards["all"]).view(2, 4)
    advantages = group_advantages(table, torch.ones(2, 4).bool(), divide_by_std=scaled).flatten()
    torch.testing.assert_close(advantages, inputs["advantages"], rtol=1e-6, atol=1e-6)
    token_level = changes["loss_type"] == "dapo"
    losses = policy_losses(
        answers.logprobs,
        old,
        advantages[answers.documents],
        torch.ones_like(old),
        answers.documents,
        clip_high=changes.get("epsilon_high", 0.2),
        normalise="token" if token_level else "sequence",
        importance=changes.get("importance_sampling_level", "token"),
        kl_weight=changes.get("beta", 0.0),
        reference_logprobs=reference,
    )
    assert (answers.logprobs - old).abs().max() > 0.02
    got = losses.losses.sum() / losses.weights.sum()
    assert abs(float(got) - float(want)) <= 1e-6
    assert abs(float(want)) > 1e-4


def test_leave_one_out(folder, tmp_path):
    """An answer without a reward included, which counts for nothing on both sides."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    values = [1.0, 4.0, 0.0, 2.5, 3.0, None, 7.0, 0.5]
    trainer = RLOOTrainer(
        theirs(folder),
        lambda completions, **_: values,
        arguments(
            RLOOConfig,
            tmp_path,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=3,
            beta=0.0,
            normalize_advantages=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": p} for p in PROMPTS]),
        processing_class=tokenizer_of(folder),
    )
    trainer.current_gradient_accumulation_steps = 1
    want = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))["advantages"]
    valid = torch.tensor([value is not None for value in values]).view(2, 4)
    table = torch.tensor([value or 0.0 for value in values]).view(2, 4)
    # TRL deals a batch out in another order than it was judged in
    got = group_advantages(table, valid, "leave_one_out", divide_by_std=False).flatten()
    torch.testing.assert_close(got.sort().values, want.sort().values, rtol=0, atol=1e-6)
    assert got.abs().max() > 1
