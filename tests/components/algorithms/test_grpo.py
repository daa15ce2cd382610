"""GRPO's arithmetic against hand-computed values, and properties that hold for any rewards."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.algorithms.grpo import GRPO
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Algorithm

GROUPS = st.lists(st.tuples(st.integers(0, 4), st.floats(-10, 10, width=32)), min_size=1, max_size=40)


def advantages(pairs: list[tuple[int, float]], **options: bool) -> torch.Tensor:
    groups, rewards = zip(*pairs, strict=True)
    return GRPO(**options).advantages(torch.tensor(rewards), torch.tensor(groups))


def test_is_an_algorithm() -> None:
    assert isinstance(GRPO(), Algorithm)


def test_advantages_by_hand_with_unequal_groups() -> None:
    # Group 7: rewards 0, 1, 1, mean 2/3, sample std sqrt(1/3). Group 2: rewards 3, 5, mean 4, sample std sqrt(2).
    result = advantages([(7, 0.0), (2, 3.0), (7, 1.0), (7, 1.0), (2, 5.0)])
    third, root2 = math.sqrt(1 / 3), math.sqrt(2)
    expected = [-2 / 3 / third, -1 / root2, 1 / 3 / third, 1 / 3 / third, 1 / root2]
    torch.testing.assert_close(result, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalize_std", [True, False])
def test_a_group_of_one_has_no_advantage_beside_larger_groups(normalize_std: bool) -> None:
    result = advantages([(0, 5.0), (1, 0.0), (2, -3.0), (1, 1.0)], normalize_std=normalize_std)
    assert result[0] == result[2] == 0.0 and result[3] == -result[1] > 0.4


def test_without_std_is_reward_minus_mean() -> None:
    result = advantages([(0, 0.0), (0, 1.0), (0, 1.0), (0, 2.0)], normalize_std=False)
    torch.testing.assert_close(result, torch.tensor([-1.0, 0.0, 0.0, 1.0]))


@given(GROUPS)
def test_each_group_sums_to_zero_and_keeps_its_order(pairs: list[tuple[int, float]]) -> None:
    result = advantages(pairs)
    assert torch.isfinite(result).all()
    for group in {group for group, _ in pairs}:
        mine = [(reward, float(result[i])) for i, (other, reward) in enumerate(pairs) if other == group]
        assert abs(sum(value for _, value in mine)) < 1e-3
        ordered = [value for _, value in sorted(mine)]
        assert ordered == sorted(ordered)


@given(GROUPS, st.floats(-5, 5))
def test_equal_rewards_have_no_advantage(pairs: list[tuple[int, float]], reward: float) -> None:
    assert advantages([(group, reward) for group, _ in pairs]).abs().max() < 1e-6


@given(GROUPS)
def test_one_groups_rewards_do_not_touch_another(pairs: list[tuple[int, float]]) -> None:
    first = pairs[0][0]
    changed = [(group, reward if group == first else reward * 3 + 1) for group, reward in pairs]
    mine = [i for i, (group, _) in enumerate(pairs) if group == first]
    assert torch.equal(advantages(pairs)[mine], advantages(changed)[mine])


def test_loss_by_hand() -> None:
    old = torch.zeros(2, 3)
    new = torch.tensor([[math.log(1.5), math.log(0.5), 0.0], [math.log(1.5), math.log(0.5), 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    loss, metrics = GRPO(clip_low=0.2, clip_high=0.3).loss(new, old, torch.tensor([2.0, -1.0]), mask)
    # A > 0: -A min(r, 1.3); A < 0: -A max(r, 0.8); masked: zero.
    expected = torch.tensor([[-2.6, -1.0, -2.0], [1.5, 0.8, 0.0]])
    torch.testing.assert_close(loss, expected)
    assert metrics["pg_clipfrac"].tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    torch.testing.assert_close(metrics["ppo_kl"], -new * mask)


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-0.5, -1.0]], requires_grad=True)
    loss, _ = GRPO().loss(logprobs, logprobs.detach(), torch.tensor([3.0]), torch.ones(1, 2))
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.full((1, 2), -3.0))


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-2, 2))
def test_clipped_tokens_have_no_gradient(new: float, old: float, advantage: float) -> None:
    logprobs = torch.tensor([[new]], requires_grad=True)
    loss, metrics = GRPO().loss(logprobs, torch.tensor([[old]]), torch.tensor([advantage]), torch.ones(1, 1))
    loss.sum().backward()
    if metrics["pg_clipfrac"].item():
        assert logprobs.grad is not None and logprobs.grad.item() == 0.0


@pytest.mark.parametrize("options", [{"clip_low": 0.0}, {"clip_low": 1.0}, {"clip_high": -0.1}])
def test_senseless_clips_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ComponentError, match="clip_low"):
        GRPO(**options)


def test_no_advantage_is_no_loss_however_far_the_policy_has_gone() -> None:
    new, old = torch.full((1, 1), -1.0), torch.full((1, 1), -95.0)
    loss, metrics = GRPO().loss(new, old, torch.zeros(1), torch.ones(1, 1))
    assert loss.item() == 0.0 and metrics["ppo_kl"].item() == -94.0
