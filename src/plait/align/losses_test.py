import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.align.losses import dpo_losses, group_advantages, policy_losses, reward_losses

LN2 = math.log(2)


def test_equal_scores_and_policy_equal_reference_cost_ln_2():
    x, y = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(reward_losses(x, x), torch.full_like(x, LN2))
    same = dpo_losses(x, y, x, y, beta=0.3)
    torch.testing.assert_close(same.losses, torch.full_like(x, LN2))
    assert same.chosen_rewards.abs().max() == same.rejected_rewards.abs().max() == 0


def test_dpo_follows_beta_and_both_sides():
    got = dpo_losses(*torch.tensor([[-1.0], [-3.0], [-2.0], [-2.5]]), beta=0.5)
    # chosen +1, rejected -0.5 nats against the reference
    assert got.losses.item() == pytest.approx(math.log(1 + math.exp(-0.5 * 1.5)))
    assert got.chosen_rewards.item() == pytest.approx(0.5)
    assert got.rejected_rewards.item() == pytest.approx(-0.25)


def everyone(rewards):
    return torch.ones_like(rewards).bool()


def test_advantages_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 1.0, 2.0]])
    plain = group_advantages(rewards, everyone(rewards), divide_by_std=False)
    assert plain.tolist() == [[-1, 0, 0, 1]]
    others = group_advantages(rewards, everyone(rewards), "leave_one_out", divide_by_std=False)
    torch.testing.assert_close(others, torch.tensor([[-4 / 3, 0, 0, 4 / 3]]))
    scaled = group_advantages(rewards, everyone(rewards))
    torch.testing.assert_close(scaled, plain / (rewards.std() + 1e-4))


def test_answers_without_a_reward_count_for_nothing():
    rewards = torch.tensor([[0.0, 1.0, 77.0, 1.0], [3.0, 9.0, 9.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    valid = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    got = group_advantages(rewards, valid)
    without = group_advantages(rewards[:1, [0, 1, 3]], everyone(rewards[:1, :3]))
    torch.testing.assert_close(got[0, [0, 1, 3]], without[0])
    assert got[0, 2] == 0
    assert got[1:].abs().max() == 0


@given(st.floats(-1e6, 1e6, width=32), st.integers(2, 9))
def test_equal_rewards_give_exactly_zero(reward, size):
    rewards = torch.full((3, size), reward)
    for baseline in ("mean", "leave_one_out"):
        assert group_advantages(rewards, everyone(rewards), baseline).abs().max() == 0


def test_equal_rewards_give_zero_gradient():
    logprobs = torch.randn(12, requires_grad=True)
    rewards = torch.full((1, 3), 0.1)
    advantages = group_advantages(rewards, everyone(rewards))[0]
    sequences = torch.arange(3).repeat_interleave(4)
    losses = policy_losses(
        logprobs, torch.randn(12), advantages[sequences], torch.ones(12), sequences
    )
    losses.losses.sum().backward()
    assert logprobs.grad.abs().max() == 0


def gradient(log_ratio, advantage, **settings):
    logprobs = torch.tensor([log_ratio], requires_grad=True)
    one = torch.ones(1)
    got = policy_losses(
        logprobs, torch.zeros(1), advantage * one, one, torch.zeros(1).long(), **settings
    )
    got.losses.sum().backward()
    return logprobs.grad.item(), bool(got.clipped)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "is_cut"),
    [(0.0, 1, False), (0.25, 1, True), (0.25, -1, False), (-0.3, -1, True), (-0.3, 1, False)],
)
def test_the_clip_cuts_gain_beyond_its_range_and_never_loss(log_ratio, advantage, is_cut):
    got, clipped = gradient(log_ratio, advantage)
    assert clipped == is_cut
    assert got == pytest.approx(0.0 if is_cut else -advantage * math.exp(log_ratio))


def test_the_upper_clip_is_its_own():
    assert gradient(0.25, 1, clip_high=0.3) == (pytest.approx(-math.exp(0.25)), False)
    assert gradient(-0.25, -1, clip_high=0.3)[1] is True


def test_masked_tokens_do_not_matter_even_if_infinite():
    sequences = torch.tensor([0, 0, 0, 1, 1])
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    kept = mask.bool()
    logprobs, old, advantages = torch.randn(3, 5)
    for settings in (
        {},
        {"normalise": "sequence"},
        {"importance": "sequence"},
        {"kl_weight": 0.2, "reference_logprobs": torch.randn(5)},
    ):
        wild = logprobs.masked_fill(~kept, 900.0).requires_grad_()
        got = policy_losses(wild, old, advantages, mask, sequences, **settings)
        some = {k: v[kept] if torch.is_tensor(v) else v for k, v in settings.items()}
        rest = (logprobs[kept], old[kept], advantages[kept], mask[kept], sequences[kept])
        want = policy_losses(*rest, **some)
        torch.testing.assert_close(got.losses.sum(), want.losses.sum())
        torch.testing.assert_close(got.weights.sum(), want.weights.sum())
        got.losses.sum().backward()
        assert wild.grad.isfinite().all()
        assert wild.grad[~kept].abs().max() == 0


def test_normalising_by_answer_lets_a_short_one_count_as_much_as_a_long_one():
    sequences = torch.tensor([0, 1, 1, 1])
    rest = (torch.zeros(4), torch.zeros(4), torch.ones(4), torch.ones(4), sequences)
    by_answer = policy_losses(*rest, normalise="sequence")
    torch.testing.assert_close(by_answer.weights, torch.tensor([1, 1 / 3, 1 / 3, 1 / 3]))
    assert policy_losses(*rest).weights.tolist() == [1, 1, 1, 1]


def test_the_divergence_needs_a_reference():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="needs reference_logprobs"):
        policy_losses(one, one, one, one, torch.zeros(1).long(), kl_weight=0.1)
