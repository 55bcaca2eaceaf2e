"""Intervals and significance against published and hand-calculated figures."""

from math import comb

import pytest

from reinforce_lite.evaluation.statistics import (
    against_chance,
    mcnemar_p_value,
    paired_interval,
    pass_at_k,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_table(correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_stays_within_bounds() -> None:
    assert wilson_interval(20, 20)[1] == pytest.approx(1.0)
    assert wilson_interval(20, 20)[1] <= 1


@pytest.mark.parametrize(
    ("gained", "lost", "same", "low", "high"),
    [
        # by hand: 51/202 - 23/202 = 0.13861, with 1.95996 sqrt((0.36634 - 0.01921) / 202) = 0.08125
        (50, 22, 128, 0.05737, 0.21986),
        # 1/12 - 1/12 = 0, with 1.95996 sqrt((1/6) / 12) = 0.23098
        (0, 0, 10, -0.23098, 0.23098),
        (3, 0, 0, -0.10122, 1.0),  # 4/5 - 1/5 = 0.6, with 1.95996 sqrt((1 - 0.36) / 5) = 0.70122: cut at 1
    ],
)
def test_paired_interval_by_hand(gained: int, lost: int, same: int, low: float, high: float) -> None:
    before = [False] * gained + [True] * lost + [True, False] * (same // 2)
    after = [True] * gained + [False] * lost + [True, False] * (same // 2)
    assert paired_interval(before, after) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_p_value_by_hand(gained: int, lost: int, p: float) -> None:
    before = [False] * gained + [True] * lost + [True, False] * 20
    after = [True] * gained + [False] * lost + [True, False] * 20
    assert mcnemar_p_value(before, after) == pytest.approx(p)


@pytest.mark.parametrize(
    ("k", "correct", "samples", "expected"),
    [
        (1, 3, 8, 3 / 8),
        (2, 3, 8, 1 - 10 / 28),  # C(5, 2) = 10 of C(8, 2) = 28 pairs hold no correct one
        (4, 3, 8, 1 - 5 / 70),  # C(5, 4) = 5 of C(8, 4) = 70
        (8, 3, 8, 1.0),
        (4, 1, 8, 0.5),
        (6, 3, 8, 1.0),  # only 5 are wrong
        (8, 0, 8, 0.0),
        (1, 0, 1, 0.0),
        (100, 10, 200, 1 - comb(190, 100) / comb(200, 100)),
    ],
)
def test_pass_at_k_by_hand(k: int, correct: int, samples: int, expected: float) -> None:
    assert pass_at_k(k, correct, samples) == pytest.approx(expected)


def test_pass_at_k_is_unbiased() -> None:
    """Over every outcome of 4 samples that are each correct with chance 1/3, its mean is 1 - (2/3)^2."""
    expected = sum(comb(4, c) * (1 / 3) ** c * (2 / 3) ** (4 - c) * pass_at_k(2, c, 4) for c in range(5))
    assert expected == pytest.approx(5 / 9)


@pytest.mark.parametrize(
    ("p", "change", "n", "said", "hint"),
    [
        (0.049, 0.5, 8, "more than", False),
        (0.12, 0.1, 99, "not more than", True),
        (0.12, -0.3, 20, "not more than", True),
        (0.12, 0.09, 20, "not more than", False),
        (0.12, 0.1, 100, "not more than", False),
    ],
)
def test_a_large_change_on_few_problems_calls_for_more(
    p: float, change: float, n: int, said: str, hint: bool
) -> None:
    text = against_chance(p, change, n)
    assert text.startswith(said)
    assert ("--eval.n" in text) == hint
