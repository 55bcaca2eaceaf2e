"""Held-out accuracy, strict and lenient, each with its interval, and whether a change is real."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from reinforce_lite.evaluation import reflection
from reinforce_lite.types import Group, Rollout, Split

Z = 1.959964  # of a 95% interval

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation. Accuracies and their intervals are fractions of 1."""

    step: int | None
    """None outside a run."""
    split: Split
    n: int
    """Problems."""
    samples: int
    """Answers to each: one is greedy."""
    strict: float
    strict_interval: Interval
    lenient: float | None
    """None for tasks that have no lenient verdict."""
    lenient_interval: Interval | None
    second_opinion: float | None
    """By a verdict that the reward does not pay; None where no gold answer is a number."""
    second_opinion_interval: Interval | None
    reward: float
    """Mean."""
    mean_tokens: float
    truncated: float
    """The share of answers cut at the limit."""
    reflection: Mapping[str, float]
    """For each keyword list of `reflection.py` the share of answers with a hit."""
    pass_at: Mapping[int, float]
    """For k = 1, 2, 4 ... up to `samples`: the share of problems that k answers solve; empty when greedy."""
    pass_at_interval: Mapping[int, Interval]

    def line(self) -> dict[str, Any]:
        """As a line of evals.jsonl: `reflection/list_a` as in steps.jsonl, `pass@k` where there is any."""
        line = asdict(self)
        rates, passed, bounds = (line.pop(k) for k in ("reflection", "pass_at", "pass_at_interval"))
        line |= {f"reflection/list_{name}": rate for name, rate in rates.items()}
        for k in passed:
            line |= {f"pass@{k}": passed[k], f"pass@{k}_interval": bounds[k]}
        return line


def evaluate(groups: Sequence[Group], step: int | None, split: Split) -> Evaluation:
    """Accuracy over all rollouts of the groups (one each when greedy)."""
    rollouts = [r for g in groups for r in g.rollouts]
    samples = len(groups[0].rollouts)
    strict, strict_interval = _accuracy(groups, lambda r: r.strict.correct)
    lenient, lenient_interval = _accuracy(groups, lambda r: r.lenient.correct if r.lenient else None)
    second, second_interval = _accuracy(groups, lambda r: r.second_opinion)
    passed = _pass_at(groups, samples)
    assert strict is not None
    assert strict_interval is not None
    return Evaluation(
        step=step,
        split=split,
        n=len(groups),
        samples=samples,
        strict=strict,
        strict_interval=strict_interval,
        lenient=lenient,
        lenient_interval=lenient_interval,
        second_opinion=second,
        second_opinion_interval=second_interval,
        reward=fmean(r.reward for r in rollouts),
        mean_tokens=fmean(len(r.completion.token_ids) for r in rollouts),
        truncated=fmean(r.completion.truncated for r in rollouts),
        reflection=reflection.rates([r.completion.text for r in rollouts]),
        pass_at=passed,
        pass_at_interval={k: wilson(share * len(groups), len(groups)) for k, share in passed.items()},
    )


def _accuracy(
    groups: Sequence[Group], right: Callable[[Rollout], bool | None]
) -> tuple[float, Interval] | tuple[None, None]:
    """The mean over problems of each one's share of right answers, where there is a verdict.

    Answers to one problem are alike, so the interval counts problems: it is the one of a single answer to
    each, too wide rather than too narrow when there are several.
    """
    verdicts = [[v for r in g.rollouts if (v := right(r)) is not None] for g in groups]
    shares = [fmean(found) for found in verdicts if found]
    return (fmean(shares), wilson(sum(shares), len(shares))) if shares else (None, None)


def _pass_at(groups: Sequence[Group], samples: int) -> dict[int, float]:
    if samples == 1:
        return {}
    right = [sum(r.strict.correct for r in g.rollouts) for g in groups]
    ks = [2**power for power in range(samples.bit_length())]
    return {k: fmean(pass_at(k, c, samples) for c in right) for k in ks}


def pass_at(k: int, right: int, samples: int) -> float:
    """The chance that one of k answers is right, from `right` of `samples`, without bias.

    1 - C(n - c, k) / C(n, k) with n samples of which c are right (Chen et al. 2021, arXiv:2107.03374).
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def wilson(right: float, n: int) -> Interval:
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
