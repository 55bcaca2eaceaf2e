"""What is known of a run without a result yet: the trend of training, that of validation, how to continue.

Each step asks other questions, so the first steps are compared with the last, and what counts is the number
of questions, not of completions: those of one question are alike. A trend is claimed only where its 95%
interval excludes 0. Adaptive selection chooses questions by difficulty, so there accuracy tells no trend.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from statistics import fmean
from typing import NamedTuple

from reinforce_lite.evaluation.statistics import CHANCE_RULE, Z, chance_words, format_p
from reinforce_lite.report.eval_history import EvalHistory, paired_p_value
from reinforce_lite.report.run_data import RunData
from reinforce_lite.report.selection import GroupStats
from reinforce_lite.runlog.health import WINDOW, compare
from reinforce_lite.utils.program import NAME
from reinforce_lite.utils.text import percent, points

MIN_QUESTIONS = 30
"""Fewest questions on each side of a comparison, for means that are nearly normal."""


class Measure(NamedTuple):
    """What a trend is a trend of, and how its values and their changes are written."""

    name: str
    meaning: str
    value: Callable[[float], str]
    change: Callable[[float], str]


ACCURACY = Measure(
    "training accuracy",
    "Training accuracy is the share of right completions among those sampled in training.",
    percent,
    lambda change: f"{points(change)} points",
)
REWARD = Measure(
    "mean reward",
    "The mean reward is that of the completions sampled in training.",
    "{:.3g}".format,
    lambda change: f"{change:+.3g}".replace("-", "−"),
)
"""Where rewards are more than right or wrong."""


def known_so_far(data: RunData, groups: Sequence[GroupStats], history: EvalHistory) -> list[str]:
    """A headline, then its small print: sentences with intervals and p-values."""
    planned = data.config.get("train", {}).get("steps", data.step)
    failed = data.summary.get("stopped") == "not finite"
    head = f"{'Training failed' if failed else 'No result yet,'} after {data.step:,} of {planned:,} steps."
    trend, trend_note = _trend(data, [g for g in groups if g.step <= data.step])
    validation, validation_note = _validation(data, history)
    return [" ".join(filter(None, (head, trend, validation))), *filter(None, (trend_note, validation_note))]


def resume_command(data: RunData) -> str | None:
    """What continues the run: a command, or a call for a run that was started in Python, whose task may be an
    object. None for a run that ended by itself. A page may be shared, so no path of this machine is in it.
    """
    if data.summary.get("stopped") not in (None, "", "signal"):
        return None
    run, name = data.run, data.run.path.resolve().name
    if not run.command:
        return f"rl.train(..., run={name!r}, resume=True)"
    return f"{NAME} train --run {name} --resume"


def _trend(data: RunData, groups: Sequence[GroupStats]) -> tuple[str, str]:
    """From the first steps to the last, at most WINDOW each: a sentence, and its small print."""
    if all(g.reward is None for g in groups):
        return "", ""
    if data.config.get("rollout", {}).get("selection") == "adaptive":
        return "", (
            "Training accuracy does not show whether the model improves, since adaptive selection chooses "
            "questions by difficulty."
        )
    graded = any(g.reward != g.strict for g in groups)
    measure = REWARD if graded else ACCURACY
    by_step: dict[int, list[float]] = {}
    for g in groups:
        value = g.reward if graded else g.strict
        if value is not None:
            by_step.setdefault(g.step, []).append(value)
    steps = list(by_step.values())
    k = min(WINDOW, len(steps) // 2)
    first, last = list(chain(*steps[:k])), list(chain(*steps[len(steps) - k :]))
    if min(len(first), len(last)) >= MIN_QUESTIONS:
        return _compare(measure, first, last, k)
    values = list(chain(*steps))
    asked = f"{len(values)} questions" if len(values) != 1 else "1 question"
    mean = measure.value(fmean(values))
    return f"So far {measure.name} is {mean} over {asked}, too early to tell a trend.", measure.meaning


def _compare(measure: Measure, first: list[float], last: list[float], k: int) -> tuple[str, str]:
    """The change from the questions of the first `k` steps to those of the last."""
    change = compare(first, last)
    half = Z * change.noise
    claim = "not more than chance explains"
    if abs(change.rise) > half:
        claim = f"a {'rise' if change.rise > 0 else 'fall'}, more than chance explains"
    before, after = measure.value(change.before), measure.value(change.after)
    low, high = measure.change(change.rise - half), measure.change(change.rise + half)
    steps = "step" if k == 1 else f"{k} steps"
    name = measure.name.capitalize()
    return (
        f"{name} was {before} over the first {steps} and {after} over the last, {claim}.",
        f"{measure.meaning} Its change from the first to the last {steps}: {measure.change(change.rise)}, "
        f"95% interval {low} to {high}, from {len(first)} and {len(last)} questions.",
    )


def _validation(data: RunData, history: EvalHistory) -> tuple[str, str]:
    """The change on the validation problems, the same in every evaluation, and its p-value."""
    evals = [e for e in data.evals if e["split"] == "validation"]
    if len(evals) < 2 or evals[0]["step"]:
        return "", ""
    first, last = evals[0], evals[-1]
    text = (
        f"On {last['n']} validation problems accuracy went from {percent(first['strict'])} to "
        f"{percent(last['strict'])} by step {last['step']}"
    )
    p = paired_p_value(history.pairs("validation", last["step"]), "strict")
    if p is None:
        return f"{text}.", ""
    note = f"Validation: {format_p(p)} in McNemar's exact test on the same problems. {CHANCE_RULE}"
    return f"{text}, {chance_words(p)}.", note
