"""From the samples of an audit to its figures, its forecast and its advice: a few rules of thumb.

Their limits are the constants below. They come from our own few runs. How often the forecast comes true on
others is measured (docs/experiments.md); the rest is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import Literal

from reinforce_lite.config import Config
from reinforce_lite.evaluation.statistics import Interval, wilson_interval
from reinforce_lite.rollout.selection import signal_chances
from reinforce_lite.runlog.health import SHOW_FORMAT
from reinforce_lite.tasks.data_audit import PAID_FOR_NOTHING, DataAudit
from reinforce_lite.tasks.wordmath import LEVELS
from reinforce_lite.trainer.audit_ways import Way, options_text
from reinforce_lite.types import Group

Forecast = Literal["likely", "slowly", "unlikely", "nothing left"]

LEARNS, LEARNS_SLOWLY = 0.25, 0.1
"""Shares of live groups from which a run is likely to learn, and to learn slowly."""
NEARLY_SOLVED = 0.9
"""Accuracy from which there is little left to learn."""
MUCH_BETTER = 0.1
"""By how much more live groups another way of asking must have to be recommended."""
OFTEN_MISSED = 0.1
"""The share of format failures from which the format, not the difficulty, is why few groups are live."""
OFTEN_CUT = 0.05
"""The share of truncated completions from which another limit is recommended."""
ENOUGH_RIGHT = 16
"""Right completions from which their lengths tell how many tokens are needed."""
MUCH_SHORTER, ROOM, LIMIT_STEP = 0.5, 1.5, 16
"""Where the longest right completion has at most this share of the limit, the limit cuts none that would have
been right. The lower limit that is then recommended is that length times ROOM, in steps of LIMIT_STEP."""
GROUP_SIZES = (16, 32)
"""Group sizes that are recommended where few groups are live."""
REFILL = 2
"""The rollout.refill that is recommended along with them."""
EASIER = "easier problems, or a larger model"


@dataclass(frozen=True, slots=True)
class QuestionCount:
    """What the untrained model did on one question. Completions whose reward failed are not counted."""

    problem_id: str
    right: int
    samples: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the untrained model did when it was asked one way. Shares are fractions of 1."""

    way: Way
    questions: int
    accuracy: float
    """pass@1, by the strict verdict."""
    solved: float
    """Share of questions with a right completion among the group's: pass@G."""
    live: float
    """Share of groups whose completions earn different rewards."""
    live_interval: Interval
    format_failures: float
    """Share of completions with the right number but not in the format."""
    truncated: float
    """Share of completions cut at the limit, without those that repeat themselves."""
    mean_tokens: float
    right: int
    """Right completions."""
    longest_right: int
    """Tokens of the longest of them; 0 if there are none."""
    counts: tuple[QuestionCount, ...]
    """By question."""

    @property
    def forecast(self) -> Forecast:
        """Whether training is likely to learn."""
        if self.accuracy >= NEARLY_SOLVED:
            return "nothing left"
        if self.live >= LEARNS:
            return "likely"
        return "slowly" if self.live >= LEARNS_SLOWLY else "unlikely"


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to change."""

    reason: str
    """With what to do, where no option does it."""
    options: str = ""
    """To paste."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.options}" if self.options else self.reason


def summarize(way: Way, groups: Sequence[Group]) -> Sampled:
    """The figures of one way of asking."""
    rollouts = [r for g in groups for r in g.rollouts]
    scored = [r for r in rollouts if not r.fault]
    live = sum(g.is_live for g in groups)
    missed = [bool(r.second_opinion) and not r.strict.correct for r in scored]
    right_lengths = [len(r.completion.token_ids) for r in scored if r.strict.correct]
    return Sampled(
        way=way,
        questions=len(groups),
        accuracy=len(right_lengths) / max(1, len(scored)),
        solved=fmean(any(g.right_where_scored) for g in groups),
        live=live / len(groups),
        live_interval=wilson_interval(live, len(groups)),
        format_failures=sum(missed) / max(1, len(missed)),
        truncated=fmean(r.completion.truncated and not r.completion.repetitive for r in rollouts),
        mean_tokens=fmean(len(r.completion.token_ids) for r in rollouts),
        right=len(right_lengths),
        longest_right=max(right_lengths, default=0),
        counts=tuple(count_right(groups)),
    )


def count_right(groups: Sequence[Group]) -> list[QuestionCount]:
    """The counts of each question; one that was asked several times has one entry."""
    right: dict[str, list[bool]] = {}
    for group in groups:
        right.setdefault(group.problem.id, []).extend(group.right_where_scored)
    return [QuestionCount(name, sum(each), len(each)) for name, each in right.items()]


def give_advice(config: Config, data: DataAudit, ways: Sequence[Sampled]) -> list[Advice]:
    """What to change, the most important first; empty where the recipe is good as it is."""
    best = best_way(ways)
    advice = []
    name, share = data.easiest
    if share >= PAID_FOR_NOTHING:
        advice.append(
            Advice(f"{name} is right for {share:.0%} of the problems: vary the problems, or fix the reward")
        )
    if best is not ways[0]:
        advice.append(Advice("ask with another prompt", best.way.options))
    return advice + _about_length(config, best) + _about_signal(config, best)


def best_way(ways: Sequence[Sampled]) -> Sampled:
    """The recipe's way, which comes first, or one that has clearly more live groups."""
    own = ways[0]
    best = max(ways, key=lambda sampled: sampled.live)
    is_clear = best.live >= own.live + MUCH_BETTER and best.live_interval[0] > own.live
    return best if is_clear and own.forecast != "nothing left" else own


def _about_length(config: Config, best: Sampled) -> list[Advice]:
    """Another limit where completions are cut: lower if the right ones need much less, else higher."""
    if best.truncated < OFTEN_CUT:
        return []
    limit, reason = config.rollout.max_new_tokens, f"{best.truncated:.0%} are cut at the limit"
    lower = max(LIMIT_STEP * ceil(ROOM * best.longest_right / LIMIT_STEP), config.rollout.min_new_tokens)
    if best.right >= ENOUGH_RIGHT and best.longest_right <= MUCH_SHORTER * limit and lower < limit:
        reason += f", and no right one has more than {best.longest_right} tokens"
        return [Advice(reason, options_text({"rollout.max_new_tokens": lower}))]
    return [Advice(reason, options_text({"rollout.max_new_tokens": 2 * limit}))]


def _about_signal(config: Config, best: Sampled) -> list[Advice]:
    """What to do where few groups are live, or the model solves nearly all problems."""
    if best.forecast == "slowly":
        return [_about_few_live(config, best)]
    if best.forecast == "unlikely" and best.format_failures >= OFTEN_MISSED:
        missed = f"{best.format_failures:.0%} are right, but not in the format that the reward reads"
        return [Advice(f"{missed}: {SHOW_FORMAT}")]
    if best.forecast == "unlikely":
        return [_another_level(config, -1, "too few groups have a signal", EASIER)]
    if best.forecast == "nothing left":
        return [_another_level(config, 1, "the model solves nearly all", "harder problems")]
    return []


def _about_few_live(config: Config, best: Sampled) -> Advice:
    """Larger groups, and questions that are likely to be live."""
    rollout = config.rollout
    larger = [g for g in GROUP_SIZES if g > rollout.group_size and expected_live(best.counts, g) >= LEARNS]
    options: dict[str, object] = {"rollout.group_size": larger[0]} if larger else {}
    if rollout.selection != "adaptive":
        options["rollout.selection"] = "adaptive"
    if rollout.refill < REFILL:
        options["rollout.refill"] = REFILL
    reason = "few groups have a signal"
    return Advice(reason if options else f"{reason}: {EASIER}", options_text(options))


def _another_level(config: Config, change: int, reason: str, otherwise: str) -> Advice:
    """The level below or above; `otherwise` for a task without one."""
    level = config.task.level + change
    if config.task.name == "wordmath" and level in LEVELS:
        return Advice(reason, options_text({"task.level": level}))
    return Advice(f"{reason}: {otherwise}")


def expected_live(counts: Sequence[QuestionCount], group_size: int) -> float:
    """The share of these questions' groups that would be live with `group_size` completions each, judged as
    adaptive selection judges questions.
    """
    return fmean(signal_chances([(c.right, c.samples) for c in counts], group_size))
