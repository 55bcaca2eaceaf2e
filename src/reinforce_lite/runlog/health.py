"""Signs that a run is going wrong, read from its step metrics and told in plain words.

    find_warnings(steps)  ->  {"second_opinion": "over steps 1 to 80 the reward rose ..."}

Every step asks different questions, so two windows of steps are compared by their means and by the noise of
the difference: the square root of the sum of the two variances, each divided by its number of steps. A change
counts when it exceeds T_99 times that noise, which for a single look at ten steps against ten happens by
chance once in 100. The warnings are looked for after every step, so over a run chance gets many tries: in 200
simulated runs of 100 steps in which nothing changed, 31 warned of the second opinion at some step. A warning
is a reason to read completions, not a verdict.

Omitted on purpose: acting on a warning. The run continues, and the best model on validation is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import sqrt
from statistics import fmean, variance

from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.utils.text import percent

WINDOW = 10
"""Steps of the shortest window that means something."""
T_99 = 2.9
"""Student's t for 99% at two windows of ten steps."""
COLLAPSED_REWARD = 0.5
"""Of the best window's reward."""
COLLAPSED_ENTROPY = 0.1
"""Of the first window's entropy."""
GROWN_ENTROPY = 1.3
"""Times the first window's."""
BROKEN_ENTROPY = 2.0
"""Times the first step's. The kept runs that mostly had no signal are at 0.4 to 1.2 times; one that its
updates broke was at three times after 14 steps.
"""
MOSTLY_NO_SIGNAL = 0.75
RARELY_RIGHT = 0.1
NEARLY_ALWAYS_RIGHT = 0.9
MOSTLY_CLIPPED = 0.5
OFTEN_NOT_FINITE = 0.1
MOSTLY_SAME, WRONG = 0.9, 0.08
"""Of completions: those that give one answer to all questions, and by how much fewer of these are right."""
LARGE_GAP = 0.05
"""Nats per token between engine and update: about twice the rounding of bfloat16."""
GROWN_GAP = 3.0
"""Times the first step's."""
SMALL_GAP = 1e-3
"""Rounding of float32, however it grows."""
GAP_STEPS = 3
"""Steps in a row, so that one with few tokens gives no warning."""
SHOW_FORMAT = "show the format in worked examples (prompt.examples in a recipe file)"

Steps = Sequence[StepMetrics]


@dataclass(frozen=True, slots=True)
class Change:
    """The mean of a metric in an earlier and in a later window."""

    before: float
    after: float
    noise: float
    """Standard error of the difference."""

    @property
    def rise(self) -> float:
        """Negative for a fall."""
        return self.after - self.before


def find_warnings(steps: Steps) -> dict[str, str]:
    """The warnings that hold now, by kind: not_finite, second_opinion, reward, entropy, growing_entropy,
    same_answer, no_signal, sampler_gap. Usually none.

    Steps that are often, or just now, not finite are the reason for whatever else looks wrong: then no other
    warning is given.
    """
    bad = [step.not_finite is not None for step in steps]
    if any(bad) and (bad[-1] or fmean(bad) >= OFTEN_NOT_FINITE):
        return {"not_finite": not_finite_warning(steps)}
    warnings = {
        "not_finite": not_finite_warning(steps),
        "second_opinion": second_opinion_warning(steps),
        "reward": reward_warning(steps),
        "entropy": entropy_warning(steps),
        "growing_entropy": growing_entropy_warning(steps),
        "same_answer": same_answer_warning(steps),
        "no_signal": no_signal_warning(steps),
        "sampler_gap": sampler_gap_warning(steps),
    }
    return {kind: text for kind, text in warnings.items() if text}


def not_finite_warning(steps: Steps) -> str:
    """Some step's gradient, weights or log-probabilities held NaN or infinity."""
    kinds = [step.not_finite for step in steps if step.not_finite]
    if not kinds:
        return ""
    what = " or ".join(dict.fromkeys(kinds))
    return (
        f"{what} not finite in {len(kinds)} of {len(steps)} steps: lower "
        "update.learning_rate, or scale the rewards if they are huge"
    )


def non_finite_streak(steps: Steps) -> int:
    """How many of the last steps in a row were not finite."""
    return sum(1 for _ in takewhile(lambda step: step.not_finite, reversed(steps)))


def second_opinion_warning(steps: Steps) -> str:
    """The reward clearly rose while the second opinion's accuracy did not rise by more than its noise.

    Compares the first quarter of the steps with the last, at least WINDOW each: over the whole run, then over
    its second half.
    """
    judged = [step for step in steps if step.second_opinion is not None]
    for part in (judged, judged[len(judged) // 2 :]):
        if len(part) < 2 * WINDOW:
            continue
        reward = first_to_last_quarter([s.reward for s in part])
        second = first_to_last_quarter([s.second_opinion or 0.0 for s in part])
        if reward.rise > T_99 * reward.noise and second.rise <= second.noise:
            return (
                f"over steps {part[0].step} to {part[-1].step} the reward rose from {reward.before:.2f} to "
                f"{reward.after:.2f}, but accuracy by a second opinion, which the reward does not pay for, "
                f"went from {percent(second.before, 0)} to {percent(second.after, 0)}: the model may be "
                "learning the format, or exploiting a gap in the reward; read some rewarded completions"
            )
    return ""


def reward_warning(steps: Steps) -> str:
    """The mean reward of the last WINDOW steps is clearly below that of the best window before, and below
    half of it.

    Where rewards are negative, half is counted from the lowest.
    """
    rewards = [step.reward for step in steps]
    if len(rewards) < 2 * WINDOW:
        return ""
    starts = range(len(rewards) - 2 * WINDOW + 1)
    best = max(starts, key=lambda start: sum(rewards[start : start + WINDOW]))
    fall = compare(rewards[best : best + WINDOW], rewards[-WINDOW:])
    lowest = min(0.0, *rewards)
    if -fall.rise <= T_99 * fall.noise or fall.after - lowest >= COLLAPSED_REWARD * (fall.before - lowest):
        return ""
    return (
        f"the reward collapsed: {fall.before:.2f} over steps {steps[best].step} to "
        f"{steps[best + WINDOW - 1].step}, {fall.after:.2f} over the last {WINDOW}; stop the run and try a "
        "lower update.learning_rate (the best model on validation is kept)"
    )


def entropy_warning(steps: Steps) -> str:
    """The last WINDOW steps' entropy is below a tenth of the first's while completions are still often
    wrong.
    """
    steps = [step for step in steps if step.entropy is not None]
    if len(steps) < 2 * WINDOW:
        return ""
    before, after = (fmean(s.entropy or 0.0 for s in part) for part in (steps[:WINDOW], steps[-WINDOW:]))
    if after >= COLLAPSED_ENTROPY * before or fmean(s.strict for s in steps[-WINDOW:]) >= NEARLY_ALWAYS_RIGHT:
        return ""
    return (
        f"the entropy collapsed: {before:.3f} nats per token over the first {WINDOW} steps, {after:.3f} over "
        f"the last {WINDOW}; the completions of a question are nearly identical and teach little; try a "
        "lower update.learning_rate or a higher rollout.temperature"
    )


def growing_entropy_warning(steps: Steps) -> str:
    """The entropy clearly rose, over the last WINDOW steps to GROWN_ENTROPY times the first's or more, and
    the reward did not rise by more than its noise, though it could. Steps of a warm start do not count.
    """
    steps = [s for s in steps if not s.warm_start]
    known = [(s.entropy, s.reward) for s in steps if s.entropy is not None]
    if len(known) < 2 * WINDOW or fmean(s.strict for s in steps[-WINDOW:]) >= NEARLY_ALWAYS_RIGHT:
        return ""
    entropy, reward = (compare(values[:WINDOW], values[-WINDOW:]) for values in zip(*known, strict=True))
    grew = entropy.after >= GROWN_ENTROPY * entropy.before and entropy.rise > T_99 * entropy.noise
    if not grew or reward.rise > reward.noise:
        return ""
    return (
        f"the entropy grew from {entropy.before:.3f} nats per token over the first {WINDOW} steps to "
        f"{entropy.after:.3f} over the last {WINDOW}, while the reward went from {reward.before:.2f} to "
        f"{reward.after:.2f}: the updates make the completions more random, not better; try a lower "
        "update.learning_rate or more questions a step"
    )


def same_answer_warning(steps: Steps) -> str:
    """In the last WINDOW steps most completions gave one answer, whatever the question, though others were
    right.
    """
    seen = [(s.same_answer, s.same_answer_right or 0.0) for s in steps[-WINDOW:] if s.same_answer is not None]
    if len(seen) < WINDOW:
        return ""
    same, right = (fmean(values) for values in zip(*seen, strict=True))
    if same < MOSTLY_SAME or right > same - WRONG:
        return ""
    return (
        f"in the last {WINDOW} steps {percent(same, 0)} of the completions gave the most frequent answer of "
        f"their step, which was right in {percent(right, 0)} of them: the model answers without regard to "
        "the question; try problems whose answers differ more"
    )


def no_signal_warning(steps: Steps) -> str:
    """Over all steps most groups had no signal, and few completions were right.

    Steps of a warm start do not count: there each right completion teaches by itself. The advice depends on
    what is seen: a broken model, completions that repeat themselves or are cut at the limit, right ones in
    another format, or none of these.
    """
    entropies = [s.entropy for s in steps if s.entropy is not None]
    steps = [s for s in steps if not s.warm_start]
    if len(steps) < WINDOW:
        return ""
    no_signal = mean_over_groups(steps, [s.no_signal_ratio for s in steps])
    right = mean_over_groups(steps, [s.strict for s in steps])
    if no_signal < MOSTLY_NO_SIGNAL or right >= RARELY_RIGHT:
        return ""
    opinions = [s.second_opinion for s in steps if s.second_opinion is not None]
    second = fmean(opinions) if len(opinions) == len(steps) else 0.0
    repetitive = fmean(s.repetition_ratio or 0.0 for s in steps)
    first, later = (entropies[0], fmean(entropies[1:])) if len(entropies) > 1 else (0.0, 0.0)
    if first and not COLLAPSED_ENTROPY * first <= later <= BROKEN_ENTROPY * first:
        advice = (
            f"since the first step the entropy went from {first:.3f} to {later:.3f} nats per token, so the "
            "updates broke the model; lower update.learning_rate"
        )
    elif repetitive >= MOSTLY_CLIPPED:
        advice = (
            "most completions repeat themselves; try worked examples, a higher rollout.temperature or a "
            "larger model"
        )
    elif fmean(s.clipped_ratio for s in steps) - repetitive >= MOSTLY_CLIPPED:
        advice = "most completions are cut at the limit; try a higher rollout.max_new_tokens"
    elif second >= RARELY_RIGHT:
        advice = f"{percent(second, 0)} have the right number without asking for the format: {SHOW_FORMAT}"
    else:
        advice = "the task is too hard as it is; try easier problems, worked examples or a larger model"
    return (
        f"in {len(steps)} steps {percent(no_signal, 0)} of the groups had no signal and "
        f"{percent(right, 0)} of the completions were right: {advice}"
    )


def sampler_gap_warning(steps: Steps) -> str:
    """In each of the last GAP_STEPS steps the mean gap was large, or far larger than in the first step."""
    gaps = [step.logprob_gap_mean for step in steps if step.logprob_gap_mean is not None]
    if len(gaps) < GAP_STEPS:
        return ""
    first, least = gaps[0], min(gaps[-GAP_STEPS:])
    if least <= SMALL_GAP or least <= min(LARGE_GAP, GROWN_GAP * first):
        return ""
    return (
        f"the engine's log-probabilities differ from the update's by at least {least:.2g} nats per token in "
        f"the last {GAP_STEPS} steps ({first:.2g} in the first): the completions come from a policy that is "
        "not quite the trained one; try --model.dtype float32, --rollout.engine native, or "
        "objective.engine_correction truncated"
    )


def mean_over_groups(steps: Steps, values: Sequence[float]) -> float:
    """The mean over all groups of a value that each step has: with refill steps differ in their groups."""
    return fmean(values, [s.questions_asked or 1 for s in steps])


def first_to_last_quarter(values: Sequence[float]) -> Change:
    """From the first quarter of the values to the last, at least WINDOW each."""
    size = max(WINDOW, len(values) // 4)
    return compare(values[:size], values[-size:])


def compare(first: Sequence[float], last: Sequence[float]) -> Change:
    """From the mean of `first` to that of `last`, with the noise of the difference."""
    noise = sqrt(variance(first) / len(first) + variance(last) / len(last))
    return Change(fmean(first), fmean(last), noise)
