"""Intervals, significance and pass@k, each with the source of its formula."""

import math
from collections.abc import Sequence

Z = 1.959964  # normal quantile of a 95% interval, rounded as in published tables

Interval = tuple[float, float]
"""(low, high), fractions of 1."""


def pass_at_k(k: int, correct: int, samples: int) -> float:
    """The unbiased estimate of the chance that at least one of k samples is correct.

    1 - C(n - c, k) / C(n, k), where c of n samples are correct
    (Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1).
    """
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def wilson_interval(correct: float, n: int) -> Interval:
    """The 95% score interval of a proportion, `correct` of n; `correct` need not be whole.

    (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n), with p = correct / n
    (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953). Near 0 and 1 it keeps its coverage,
    unlike the normal approximation.
    """
    p, zz = correct / n, Z * Z
    center = (p + zz / (2 * n)) / (1 + zz / n)
    half = Z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n)) / (1 + zz / n)
    return max(0.0, center - half), min(1.0, center + half)


def mcnemar_p_value(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The two-sided p-value of "nothing changed", from verdicts on the same problems in the same order.

    McNemar's exact test (McNemar 1947, https://doi.org/10.1007/BF02295996). Only problems whose
    verdict changed count; under the null hypothesis each is a fair coin:
    p = 2 P(Binomial(gained + lost, 1/2) <= min(gained, lost)), at most 1.
    """
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    n = gained + lost
    tail: float = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail)
