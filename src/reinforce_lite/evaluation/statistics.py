"""Intervals, significance and pass@k, each with the source of its formula."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reinforce_lite.utils.kinds import Share
from reinforce_lite.utils.text import percent

Z = 1.959964  # normal quantile of a 95% interval, rounded as in published tables

SIGNIFICANCE = 0.05
CHANCE_RULE = f"Below {SIGNIFICANCE:g} a change is called more than chance explains."
MIN_P = 1e-99
"""The smallest p-value shown: with many problems one may underflow to 0, which no p-value is."""

Interval = tuple[Share, Share]
"""(low, high), fractions of 1."""

VERDICTS = ("strict", "lenient", "second_opinion")


def control_verdict(lenient: object) -> str:
    """The verdict shown next to strict: lenient, or the second opinion where the task has no lenient one."""
    return "second_opinion" if lenient is None else "lenient"


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


def paired_interval(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """The 95% interval of the change of a share, from verdicts on the same problems in the same order.

    With gained' = (gained + 1) / (n + 2) and lost' = (lost + 1) / (n + 2):
    gained' - lost' ± z sqrt((gained' + lost' - (gained' - lost')²) / (n + 2))
    (Bonett and Price 2012, https://doi.org/10.3102/1076998611411915; recommended by Fagerland et al. 2014,
    https://doi.org/10.1002/sim.6148).
    """
    n = len(before) + 2
    gained = (sum(a and not b for b, a in zip(before, after, strict=True)) + 1) / n
    lost = (sum(b and not a for b, a in zip(before, after, strict=True)) + 1) / n
    half = Z * math.sqrt((gained + lost - (gained - lost) ** 2) / n)
    return max(-1.0, gained - lost - half), min(1.0, gained - lost + half)


def format_p(p: float) -> str:
    """A p-value with two digits.

    >>> format_p(0.000012)
    'p = 1.2e-05'
    """
    return f"p = {p:.2g}" if p >= MIN_P else f"p < {MIN_P:g}"


def chance_words(p: float) -> str:
    """Whether a change is more than chance explains, in words."""
    return "more than chance explains" if p < SIGNIFICANCE else "not more than chance explains"


def small_n_hint(p: float, change: float, n: int) -> str:
    """What to do where a change of accuracy is large, but too few problems tell it from chance; else empty.

    >>> small_n_hint(0.12, 0.25, 20)
    'n = 20 is small: --eval.n 200'
    """
    unclear = p >= SIGNIFICANCE and n < 100 and abs(change) >= 0.1
    return f"n = {n} is small: --eval.n 200" if unclear else ""


def against_chance(p: float, change: float, n: int) -> str:
    """Whether a change of accuracy (a fraction of 1) on `n` problems is more than chance explains, and why.

    >>> against_chance(0.12, 0.25, 20)
    'not more than chance explains (p = 0.12; n = 20 is small: --eval.n 200)'
    """
    reasons = filter(None, (format_p(p), small_n_hint(p, change, n)))
    return f"{chance_words(p)} ({'; '.join(reasons)})"


def constant_hint(evaluation: Mapping[str, Any]) -> str:
    """What the best constant answer would reach, where an evaluation's accuracy is not clearly above it.

    `evaluation` has the keys of evals.jsonl. Returns "" where the accuracy is 0 or clearly above the
    constant, where no two golds are equal, and where there are no golds.
    """
    constant = evaluation.get("best_constant")
    if constant is None or not evaluation["strict"] or constant * evaluation["n"] <= 1:
        return ""
    if constant < evaluation["strict_interval"][0]:
        return ""
    reached = f"giving one and the same answer to every question would reach {percent(constant)}"
    return f"{reached}, and this accuracy is not clearly above that"
