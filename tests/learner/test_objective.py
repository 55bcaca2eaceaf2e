"""The objective family against values worked out by hand, and on a bandit whose outcomes are enumerated."""

import itertools
import math
from typing import get_args

import pytest
import torch

from reinforce_lite.config import PresetName, RolloutConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.learner.loss import reinforce_loss
from reinforce_lite.learner.objective import (
    check_engine_correction,
    check_group_size,
    compute_advantages,
    compute_loss_weights,
    warm_start_advantages,
)
from reinforce_lite.learner.presets import PRESETS, Objective, build_objective


def test_presets_are_those_of_the_config() -> None:
    assert set(PRESETS) == set(get_args(PresetName))


def one_group(preset: PresetName, rewards: list[float]) -> list[float]:
    return compute_advantages([rewards], PRESETS[preset])[0].tolist()


@pytest.mark.parametrize(
    ("preset", "rewards", "expected"),
    [
        # others of the first: 1, 0, 0, mean 1/3, deviation sqrt(1/3): (2/3) / sqrt(1/3) = 2/sqrt(3)
        ("reinforce-lite", [1, 1, 0, 0], [2 / 3**0.5, 2 / 3**0.5, -2 / 3**0.5, -2 / 3**0.5]),
        # one right: its scale is 0, so it is clipped; others of a wrong one: mean 1/9, deviation 1/3
        ("reinforce-lite", [1] + [0] * 9, [2] + [-1 / 3] * 9),
        ("reinforce-lite", [0] + [1] * 9, [-2] + [1 / 3] * 9),
        ("article", [1] + [0] * 9, [2] + [-1 / 3] * 9),
        # the first implementation's +1 and -1 give the same advantages as 1 and 0
        ("article", [1] + [-1] * 9, [2] + [-1 / 3] * 9),
        ("rloo", [1, 0, 0, 0], [1, -1 / 3, -1 / 3, -1 / 3]),
        ("grpo", [1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        ("dr-grpo", [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        ("monte-carlo", [1, 0, 0, 0], [1, 0, 0, 0]),
        ("monte-carlo", [1, 1, 1], [1, 1, 1]),
        # graded rewards: others of 3 are 1 and 2: mean 1.5, deviation sqrt(1/2); 1.5 * sqrt(2) = 2.12, clipped to 2
        ("reinforce-lite", [1, 2, 3], [-2, 0, 2]),
        ("grpo", [1, 2, 3], [-1, 0, 1]),
    ],
)
def test_advantages_by_hand(preset: PresetName, rewards: list[float], expected: list[float]) -> None:
    assert one_group(preset, rewards) == pytest.approx(expected, abs=2e-7)


@pytest.mark.case(11)
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "monte-carlo"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.7, 1e9, -3.3, 1 / 3, 1e30, -1e30])
def test_equal_rewards_have_exactly_zero_advantage(preset: PresetName, value: float) -> None:
    for size in (3, 7, 10):
        assert one_group(preset, [value] * size) == [0.0] * size


def test_advantages_resolve_nearly_equal_large_rewards() -> None:
    a = one_group("rloo", [1e9, 1e9, 1e9 + 1])
    assert a == pytest.approx([-0.5, -0.5, 1.0], abs=1e-6)


def test_advantages_of_groups_are_independent() -> None:
    a = compute_advantages([[1, 0, 0], [5, 5, 5]], PRESETS["dr-grpo"])
    assert a.tolist() == [pytest.approx([2 / 3, -1 / 3, -1 / 3]), [0, 0, 0]]
    assert a.dtype == torch.float64


def test_advantage_clip_can_be_removed_or_changed() -> None:
    def first_advantage(**parts: object) -> float:
        return compute_advantages([[1, 0, 0]], build_objective("reinforce-lite", **parts))[0, 0].item()

    assert first_advantage() == 2
    assert first_advantage(advantage_clip=0.5) == 0.5
    assert first_advantage(advantage_clip="none") == pytest.approx(1e8)
    assert first_advantage(advantage_clip=None) == 2  # not given


def test_loss_weights_by_hand() -> None:
    a = torch.tensor([[2.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
    lengths = [[1, 2, 4], [5, 10, 10]]
    constant = compute_loss_weights(a, lengths, PRESETS["reinforce-lite"], max_new_tokens=10)
    assert constant.tolist() == [[2 / 60, -1 / 60, 0], [1 / 60, 1 / 60, -2 / 60]]
    sums = compute_loss_weights(a, lengths, PRESETS["rloo"], max_new_tokens=10)
    assert sums.tolist() == [[2 / 6, -1 / 6, 0], [1 / 6, 1 / 6, -2 / 6]]
    means = compute_loss_weights(a, lengths, PRESETS["grpo"], max_new_tokens=10)
    assert means.tolist() == [[2 / 6, -1 / 12, 0], [1 / 30, 1 / 60, -2 / 60]]
    one = compute_loss_weights(a, lengths, PRESETS["article"], max_new_tokens=10)
    assert one.tolist() == [[2 / 2, 0, 0], [1 / 2, 0, 0]]
    refilled = compute_loss_weights(a, lengths, PRESETS["reinforce-lite"], max_new_tokens=10, questions=1)
    assert refilled.tolist() == [[2 / 30, -1 / 30, 0], [1 / 30, 1 / 30, -2 / 30]]


def test_warm_start_counts_each_right_completion_of_a_group_once() -> None:
    """Another group may repeat it: its question is another one."""
    right = [[True, False, True, True], [True, True, False, False]]
    completions: list[list[tuple[int, ...]]] = [[(5, 2), (6, 2), (5, 2), (7, 2)], [(5, 2), (9,), (9,), (9,)]]
    a = warm_start_advantages(right, completions)
    assert a.tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]
    assert a.dtype == torch.float64
    # The first is wrong since its reward failed; its twin counts.
    assert warm_start_advantages([[False, True, True]], [[(5,), (5,), (7,)]]).tolist() == [[0, 1, 1]]
    assert warm_start_advantages([[False] * 2], [[(1,), (2,)]]).tolist() == [[0, 0]]


def test_loss_by_hand() -> None:
    sums = torch.tensor([-3.0, -1.0], requires_grad=True)
    value = reinforce_loss(sums, torch.tensor([0.5, -0.25], dtype=torch.float64))
    assert value.item() == 1.25
    torch.autograd.backward(value)
    assert sums.grad is not None
    assert sums.grad.tolist() == [-0.5, 0.25]  # makes the good completion likelier, the bad one less likely


def test_logprob_temperature() -> None:
    assert PRESETS["reinforce-lite"].temperature(0.7) == 0.7
    assert PRESETS["article"].temperature(0.7) == 1.0
    assert build_objective("reinforce-lite", logprob_temperature=0.9).temperature(0.7) == 0.9


@pytest.mark.case(12)
@pytest.mark.parametrize(
    ("preset", "too_small", "enough"),
    [("reinforce-lite", 2, 3), ("article", 2, 3), ("rloo", 1, 2), ("grpo", 1, 2), ("dr-grpo", 1, 2)],
)
def test_too_small_groups_are_refused(preset: PresetName, too_small: int, enough: int) -> None:
    check_group_size(PRESETS[preset], enough)
    with pytest.raises(UsageError, match=f"needs at least {enough} "):
        check_group_size(PRESETS[preset], too_small)


PROBABILITIES = [0.5, 0.2, 0.2, 0.1]


def expected_gradient(objective: Objective, rewards: list[float], group: int) -> list[float]:
    """E[sum_i w_i grad log pi(o_i)] of a softmax bandit, every group of outcomes enumerated.

    grad of log pi(o) with respect to the logits is onehot(o) - pi.
    """
    total = [0.0] * len(PROBABILITIES)
    for outcomes in itertools.product(range(len(PROBABILITIES)), repeat=group):
        chance = math.prod(PROBABILITIES[o] for o in outcomes)
        a = compute_advantages([[rewards[o] for o in outcomes]], objective)
        w = compute_loss_weights(a, [[1] * group], objective, max_new_tokens=1)[0].tolist()
        for o, weight in zip(outcomes, w, strict=True):
            for k, p in enumerate(PROBABILITIES):
                total[k] += chance * weight * ((k == o) - p)
    return total


def true_gradient(rewards: list[float]) -> list[float]:
    """Of the expected reward: pi_k (r_k - mean reward)."""
    mean = sum(p * r for p, r in zip(PROBABILITIES, rewards, strict=True))
    return [p * (r - mean) for p, r in zip(PROBABILITIES, rewards, strict=True)]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("rewards", [[0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
def test_expected_gradient_is_parallel_to_the_true_one_for_binary_rewards(
    preset: PresetName, rewards: list[float]
) -> None:
    """Every member of the family, with its clip."""
    gradient = expected_gradient(PRESETS[preset], rewards, group=4)
    assert cosine(gradient, true_gradient(rewards)) == pytest.approx(1, abs=1e-12)


def test_scaled_objectives_are_biased_for_graded_rewards() -> None:
    """Unscaled objectives are unbiased for any rewards; scaled and clipped ones are not."""
    rewards = [0.0, 1.0, 5.0, 2.0]
    assert cosine(expected_gradient(PRESETS["rloo"], rewards, 4), true_gradient(rewards)) == pytest.approx(
        1, abs=1e-12
    )
    skewed = cosine(expected_gradient(PRESETS["reinforce-lite"], rewards, 4), true_gradient(rewards))
    assert 0.5 < skewed < 1 - 1e-4


def test_rloo_equals_the_true_gradient() -> None:
    rewards = [0.0, 1.0, 5.0, 2.0]
    assert expected_gradient(PRESETS["rloo"], rewards, 3) == pytest.approx(true_gradient(rewards), abs=1e-12)


@pytest.mark.parametrize(
    ("top_p", "min_new_tokens", "key"), [(0.9, 0, "top_p 0.9"), (1.0, 4, "min_new_tokens 4")]
)
def test_a_correction_needs_the_whole_distribution(top_p: float, min_new_tokens: int, key: str) -> None:
    rollout = RolloutConfig(top_p=top_p, min_new_tokens=min_new_tokens)
    truncated = build_objective("reinforce-lite", engine_correction="truncated")
    with pytest.raises(UsageError, match=f"rollout.{key} "):
        check_engine_correction(truncated, rollout)
    check_engine_correction(truncated, RolloutConfig(top_p=1.0))
    check_engine_correction(build_objective("reinforce-lite", engine_correction="none"), rollout)
