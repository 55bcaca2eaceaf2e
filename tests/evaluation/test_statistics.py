"""Intervals and significance against published and hand-calculated figures."""

from math import comb

import pytest

from reinforce_lite.evaluation.statistics import mcnemar_p_value, pass_at_k, wilson_interval


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
