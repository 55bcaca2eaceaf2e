"""Held-out accuracy, strict and lenient, each with its 95% interval."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from reinforce_lite.evaluation.reflection import reflection_rates
from reinforce_lite.evaluation.statistics import Interval, pass_at_k, wilson_interval
from reinforce_lite.types import Group, Rollout, Split
from reinforce_lite.utils.kinds import Amount, Count, Share


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one evaluation. Accuracies, shares and intervals are fractions of 1."""

    step: int | None
    """None outside a run."""
    split: Split
    n: Count
    """Problems, without those on all of whose completions the reward failed."""
    samples: Count
    """Completions per problem; a single one is greedy."""
    strict: Share
    strict_interval: Interval
    lenient: Share | None
    """None for tasks that have no lenient verdict."""
    lenient_interval: Interval | None
    second_opinion: Share | None
    """Accuracy by a verdict that is not rewarded; None where no gold is a number."""
    second_opinion_interval: Interval | None
    best_constant: Share | None
    """What the best constant answer would reach: the share of problems with the most frequent gold, as golds
    are written. None where there are no golds."""
    reward: float
    """Mean."""
    reward_faults: Count
    """Completions on which the reward failed: they count neither as right nor as wrong."""
    mean_tokens: Amount
    truncated: Share
    """The share of completions cut at the token limit, or where they repeat themselves."""
    reflection: Mapping[str, float]
    """For each keyword list of `reflection.py`, the share of completions with a hit."""
    pass_at: Mapping[int, float]
    """pass@k for k = 1, 2, 4 ... up to `samples`; empty when greedy, or if no problem has all its rewards."""
    pass_at_interval: Mapping[int, Interval]

    def to_record(self) -> dict[str, Any]:
        """A line of evals.jsonl: the fields, with `reflection/list_a`, `pass@1` and so on as keys."""
        record = asdict(self)
        rates, pass_at, intervals = (record.pop(k) for k in ("reflection", "pass_at", "pass_at_interval"))
        record |= {f"reflection/list_{name}": rate for name, rate in rates.items()}
        for k in pass_at:
            record |= {f"pass@{k}": pass_at[k], f"pass@{k}_interval": intervals[k]}
        return record


_IS_CORRECT: dict[str, Callable[[Rollout], bool | None]] = {
    "strict": lambda r: r.strict.correct,
    "lenient": lambda r: r.lenient.correct if r.lenient else None,
    "second_opinion": lambda r: r.second_opinion,
}
"""What an evaluation counts as correct, by field of `Evaluation`; None where there is no verdict. Completions
on which the reward failed do not count."""


def evaluate_groups(groups: Sequence[Group], step: int | None, split: Split) -> Evaluation:
    """Evaluate groups of equal size, at least one; groups of one rollout count as greedy.

    pass@k leaves out the problems on one of whose completions the reward failed. At least one completion must
    be scored.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    scored = [r for r in rollouts if not r.fault]
    n, samples = sum(bool(g.right_where_scored) for g in groups), len(groups[0].rollouts)
    accuracies: dict[str, Any] = {}
    for name, is_correct in _IS_CORRECT.items():
        accuracies[name], accuracies[f"{name}_interval"] = _accuracy(groups, is_correct)
    whole = [g.right_where_scored for g in groups if len(g.right_where_scored) == samples]
    ks = [2**power for power in range(samples.bit_length())] if samples > 1 and whole else []
    pass_at = {k: fmean(pass_at_k(k, sum(right), samples) for right in whole) for k in ks}
    return Evaluation(
        step=step,
        split=split,
        n=n,
        samples=samples,
        **accuracies,
        best_constant=_best_constant(groups),
        reward=fmean(r.reward for r in scored),
        reward_faults=len(rollouts) - len(scored),
        mean_tokens=fmean(len(r.completion.token_ids) for r in rollouts),
        truncated=fmean(r.completion.truncated for r in rollouts),
        reflection=reflection_rates([r.completion.text for r in rollouts]),
        pass_at=pass_at,
        pass_at_interval={k: wilson_interval(share * len(whole), len(whole)) for k, share in pass_at.items()},
    )


def _best_constant(groups: Sequence[Group]) -> float | None:
    measured = [g for g in groups if g.right_where_scored]
    golds = Counter(str(g.problem.gold) for g in measured if g.problem.gold not in (None, ""))
    return golds.most_common(1)[0][1] / len(measured) if golds else None


def _accuracy(
    groups: Sequence[Group], is_correct: Callable[[Rollout], bool | None]
) -> tuple[float, Interval] | tuple[None, None]:
    """The mean over problems of the share of correct rollouts, where there is a verdict.

    Rollouts of one problem are not independent, so the interval counts problems, as if each had a
    single rollout: with several it is too wide rather than too narrow.
    """
    verdicts = [[v for r in g.rollouts if not r.fault and (v := is_correct(r)) is not None] for g in groups]
    shares = [fmean(judged) for judged in verdicts if judged]
    return (fmean(shares), wilson_interval(sum(shares), len(shares))) if shares else (None, None)
