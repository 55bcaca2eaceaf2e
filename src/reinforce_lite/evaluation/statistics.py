"""Intervals, significance and pass@k, each with the source of its formula."""

import math
from collections.abc import Sequence

Z = 1.959964  # of a 95% interval


Interval = tuple[float, float]


def pass_at_k(k: int, right: int, samples: int) -> float:
    """The chance that one of k answers is right, from `right` of `samples`, without bias.

    1 - C(n - c, k) / C(n, k) with n samples of which c are right (Chen et al. 2021, arXiv:2107.03374).
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def wilson_interval(right: float, n: int) -> Interval:
    """The 95% score interval of a share (Wilson 1927): honest near 0 and 1, where the usual one fails."""
    p, zz = right / n, Z * Z
    middle = (p + zz / (2 * n)) / (1 + zz / n)
    half = Z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n)) / (1 + zz / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar_p_value(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The two-sided p-value that nothing changed on the same problems: McNemar's exact test.

    Only problems whose verdict changed count; if nothing changed, each is a fair coin:
    p = 2 x P(Binomial(won + lost, 1/2) <= min(won, lost)), at most 1.
    """
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    n, few = won + lost, min(won, lost)
    tail: float = sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    return min(1.0, 2 * tail)
