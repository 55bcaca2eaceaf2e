"""Held-out accuracy, strict and lenient, each with its interval, and whether a change is real."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from reinforce_lite.evaluation.reflection import reflection_rates
from reinforce_lite.evaluation.statistics import Interval, pass_at_k, wilson_interval
from reinforce_lite.types import Group, Rollout, Split


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


def evaluate_groups(groups: Sequence[Group], step: int | None, split: Split) -> Evaluation:
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
        reflection=reflection_rates([r.completion.text for r in rollouts]),
        pass_at=passed,
        pass_at_interval={
            k: wilson_interval(share * len(groups), len(groups)) for k, share in passed.items()
        },
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
    return (fmean(shares), wilson_interval(sum(shares), len(shares))) if shares else (None, None)


def _pass_at(groups: Sequence[Group], samples: int) -> dict[int, float]:
    if samples == 1:
        return {}
    right = [sum(r.strict.correct for r in g.rollouts) for g in groups]
    ks = [2**power for power in range(samples.bit_length())]
    return {k: fmean(pass_at_k(k, c, samples) for c in right) for k in ks}
