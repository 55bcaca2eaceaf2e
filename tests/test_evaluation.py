"""Intervals and significance against published and hand-made figures."""

import pytest

from reinforce_lite.evaluation import paired_p, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_table(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_stays_within_bounds() -> None:
    assert wilson(20, 20)[1] == pytest.approx(1.0)
    assert wilson(20, 20)[1] <= 1


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_paired_p_by_hand(won: int, lost: int, p: float) -> None:
    before = [False] * won + [True] * lost + [True, False] * 20
    after = [True] * won + [False] * lost + [True, False] * 20
    assert paired_p(before, after) == pytest.approx(p)
