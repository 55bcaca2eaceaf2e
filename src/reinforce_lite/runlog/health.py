"""Signs that a run goes wrong, read from its step lines and said in plain words.

    read(run.steps)  ->  {"second_opinion": "over steps 1 to 80 the reward rose from 0.20 to 0.90, but ..."}

Steps differ in their questions, so two stretches of steps are compared by their means and by the noise of
the difference: the square root of the two variances over their numbers of steps. A change is clear when it
is larger than CLEAR times its noise, which at ten steps a side leaves chance 1 in 100. That is for one look:
signs are read after every step, so over a run chance gets many tries: of 200 simulated runs of 100 steps in
which nothing changed 31 warned of the second opinion at some step. A warning is a reason to read answers, no
verdict.

Left out on purpose: doing anything about it. The run goes on, and the best model on validation is kept
whatever happens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

STEPS = 10  # the shortest stretch that means something
CLEAR = 2.9  # Student's t for 99% at 2 x 10 steps
HALF, MOST, TENTH, NEARLY_ALL = 0.5, 0.75, 0.1, 0.9

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """From one stretch of steps to another."""

    before: float
    after: float
    noise: float

    @property
    def rise(self) -> float:
        return self.after - self.before


def find_warnings(lines: Sequence[Line]) -> dict[str, str]:
    """What shows now, in words, by kind: second_opinion, reward, entropy, idle; usually nothing."""
    found = {
        "second_opinion": second_opinion(lines),
        "reward": reward(lines),
        "entropy": entropy(lines),
        "idle": idle(lines),
    }
    return {kind: words for kind, words in found.items() if words}


def second_opinion(lines: Sequence[Line]) -> str:
    """The reward clearly rose and the second opinion's accuracy did not rise by more than its noise.

    The first quarter of the steps against the last, at least STEPS each; over the whole run, then over its
    later half.
    """
    judged = [line for line in lines if line.get("accuracy/second_opinion") is not None]
    for part in (judged, judged[len(judged) // 2 :]):
        if len(part) < 2 * STEPS:
            continue
        paid, second = over(part, "reward"), over(part, "accuracy/second_opinion")
        if paid.rise > CLEAR * paid.noise and second.rise <= second.noise:
            return (
                f"over steps {part[0]['step']} to {part[-1]['step']} the reward rose from {paid.before:.2f} "
                f"to {paid.after:.2f}, but accuracy by a second opinion, which is not paid, went from "
                f"{second.before:.0%} to {second.after:.0%}: the model may be learning the form, or a gap in "
                "the reward; read some answers that were paid"
            )
    return ""


def reward(lines: Sequence[Line]) -> str:
    """The mean reward of the last STEPS steps is clearly below that of the best STEPS in a row before, and
    below half of it.

    Where rewards are negative, half is counted from the lowest.
    """
    rewards = [float(line["reward"]) for line in lines]
    if len(rewards) < 2 * STEPS:
        return ""
    best = max(range(len(rewards) - 2 * STEPS + 1), key=lambda start: sum(rewards[start : start + STEPS]))
    fall = compare(rewards[best : best + STEPS], rewards[-STEPS:])
    lowest = min(0.0, *rewards)
    if -fall.rise <= CLEAR * fall.noise or fall.after - lowest >= HALF * (fall.before - lowest):
        return ""
    return (
        f"the reward collapsed: {fall.before:.2f} over steps {lines[best]['step']} to "
        f"{lines[best + STEPS - 1]['step']}, {fall.after:.2f} over the last {STEPS}; stop it, and try a "
        "lower update.learning_rate (the best model on validation is kept)"
    )


def entropy(lines: Sequence[Line]) -> str:
    """The last STEPS steps' entropy is below a tenth of the first's, while answers are still often wrong."""
    if len(lines) < 2 * STEPS:
        return ""
    first, last = lines[:STEPS], lines[-STEPS:]
    before, after = mean(first, "entropy"), mean(last, "entropy")
    if after >= TENTH * before or mean(last, "accuracy/strict") >= NEARLY_ALL:
        return ""
    return (
        f"the entropy collapsed: {before:.3f} nats a token over the first {STEPS} steps, {after:.3f} over "
        f"the last {STEPS}; the answers to a question are nearly the same, and teach little; try a lower "
        "update.learning_rate or a higher rollout.temperature"
    )


def idle(lines: Sequence[Line]) -> str:
    """Over all steps MOST groups or more taught nothing, and fewer than a TENTH of the answers were right.

    Why is told by what shows: answers that are cut, right ones in another form, or neither.
    """
    if len(lines) < STEPS:
        return ""
    taught_nothing, right = mean(lines, "frac_reward_zero_std"), mean(lines, "accuracy/strict")
    if taught_nothing < MOST or right >= TENTH:
        return ""
    seconds = [line["accuracy/second_opinion"] for line in lines]
    second = fmean(seconds) if seconds and None not in seconds else 0.0
    if mean(lines, "completions/clipped_ratio") >= HALF:
        why = "most answers are cut; try a higher rollout.max_new_tokens"
    elif second >= TENTH:
        why = (
            f"{second:.0%} are by a second opinion, so it is the form that is missing; show it in the prompt"
        )
    else:
        why = "the task is too hard as it is; try easier problems, worked examples, a larger model"
    return (
        f"in {len(lines)} steps {taught_nothing:.0%} of the groups taught nothing, and {right:.0%} of the "
        f"answers were right: {why}"
    )


def over(lines: Sequence[Line], key: str) -> Change:
    """From the first quarter of the lines to the last, at least STEPS each."""
    k = max(STEPS, len(lines) // 4)
    values = [float(line[key]) for line in lines]
    return compare(values[:k], values[-k:])


def compare(first: Sequence[float], last: Sequence[float]) -> Change:
    """From the mean of `first` to that of `last`, with the noise of the difference."""
    noise = sqrt(_variance(first) / len(first) + _variance(last) / len(last))
    return Change(fmean(first), fmean(last), noise)


def mean(lines: Sequence[Line], key: str) -> float:
    return fmean(line[key] for line in lines)


def _variance(values: Sequence[float]) -> float:
    """Unbiased."""
    middle = fmean(values)
    return sum((v - middle) ** 2 for v in values) / (len(values) - 1)
