"""Held-out accuracy, strict and lenient, each with its interval, and whether a change is real."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reinforce_lite.records import Group, Split

Z = 1.959964  # of a 95% interval


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation. Accuracies and their intervals are fractions of 1."""

    step: int | None
    """None outside a run."""
    split: Split
    n: int
    strict: float
    strict_interval: tuple[float, float]
    lenient: float | None
    """None for tasks that have no lenient verdict."""
    lenient_interval: tuple[float, float] | None
    reward: float
    """Mean."""
    mean_tokens: float
    truncated: float
    """The share of answers cut at the limit."""


def evaluate(groups: Sequence[Group], step: int | None, split: Split) -> Evaluation:
    """Accuracy over all rollouts of the groups (one each when greedy)."""
    rollouts = [r for g in groups for r in g.rollouts]
    n = len(rollouts)
    right = sum(r.strict.correct for r in rollouts)
    lenient = [r.lenient.correct for r in rollouts if r.lenient is not None]
    return Evaluation(
        step=step,
        split=split,
        n=n,
        strict=right / n,
        strict_interval=wilson(right, n),
        lenient=sum(lenient) / n if lenient else None,
        lenient_interval=wilson(sum(lenient), n) if lenient else None,
        reward=sum(r.reward for r in rollouts) / n,
        mean_tokens=sum(len(r.completion.token_ids) for r in rollouts) / n,
        truncated=sum(r.completion.truncated for r in rollouts) / n,
    )


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927): honest near 0 and 1, where the usual one fails."""
    p, zz = right / n, Z * Z
    middle = (p + zz / (2 * n)) / (1 + zz / n)
    half = Z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n)) / (1 + zz / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_p(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The two-sided p-value that nothing changed on the same problems: McNemar's exact test.

    Only problems whose verdict changed count; if nothing changed, each is a fair coin:
    p = 2 x P(Binomial(won + lost, 1/2) <= min(won, lost)), at most 1.
    """
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    n, few = won + lost, min(won, lost)
    tail: float = sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    return min(1.0, 2 * tail)
