"""Which questions a step asks.

A group whose completions all earned the same reward has no signal: its rollout teaches nothing.
`shuffle` asks every question once an epoch. `adaptive` prefers questions whose group is likely to have a
signal, given what the policy did on them before:

    s successes in n trials, older ones counting less     p ~ Beta(k m + s, k (1 - m) + n - s)
    E[p^G] = prod_{i<G} (a + i) / (a + b + i)             for p ~ Beta(a, b): the beta-binomial distribution
    chance of a signal = 1 - E[p^G] - E[(1 - p)^G]

m is the mean success of the task, k the weight of that prior: a question that was never asked is judged by
the task. Where the recipe was audited before the run (trainer/audit.py), the audit's trials count as those of
a step 0: such a run asks other questions than one that was not audited. Each question keeps a floor, so none
is forgotten for good. Related: GRESO, https://arxiv.org/abs/2506.02177.

Success is correctness. Selecting by the spread of a shaped reward would favour questions with a noisy one.

With `rollout.refill` a step asks further questions in place of those whose group had no signal. With a shaped
reward nearly every group has one.

Both change which questions are trained on. So steps.jsonl has the distribution of their difficulty.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import log, prod
from random import Random
from typing import Any

from reinforce_lite.config import RolloutConfig
from reinforce_lite.types import Group, Problem
from reinforce_lite.utils.seeding import derive_seed

DECAY = 0.98
"""A trial's weight is multiplied by this in every step: it halves in 34 steps."""
PRIOR_WEIGHT = 1.0
"""Of the task's mean, in trials. At 1 the prior is U-shaped, as success rates of questions are."""
FLOOR = 0.1
"""The share of a draw that is uniform over all questions."""


@dataclass(slots=True)
class _Record:
    """What the policy did on one question."""

    successes: float = 0.0
    trials: float = 0.0
    step: int = 0
    """At which the two were last brought up to date."""

    def at(self, step: int) -> tuple[float, float]:
        """Successes and trials with the weight that they have at a later step."""
        weight = DECAY ** (step - self.step)
        return weight * self.successes, weight * self.trials


class QuestionSelector:
    """Chooses each step's questions. All that it knows comes from the run's files: a resume rebuilds it."""

    def __init__(self, problems: Sequence[Problem], config: RolloutConfig, seed: int) -> None:
        self.problems, self.config, self.seed = problems, config, seed
        self.asked_before = 0
        """Questions of all steps so far."""
        self.history = QuestionHistory()

    def select(self, step: int, groups: Sequence[Group]) -> list[Problem]:
        """What the step asks next, after these groups of its own; empty when it has asked enough.

        That is when `prompts_per_step` groups have a signal, or with `refill` times as many questions, or all
        that there are. Shuffled questions that a step may all ask keep one order in every epoch.
        """
        wanted, asked = self.config.prompts_per_step, len(groups)
        most = min(self.config.refill * wanted, len(self.problems))
        n = min(wanted - sum(group.is_live for group in groups), most - asked)
        if n <= 0:
            return []
        asked_ids = {group.problem.id for group in groups}
        if self.config.selection == "shuffle":
            return epoch_problems(self.problems, self.asked_before + asked, n, self.seed, apart=most)
        candidates = [p for p in self.problems if p.id not in asked_ids]
        random = Random(derive_seed(self.seed, f"selection {asked}" if asked else "selection", step))
        chances = self.history.signal_chances(candidates, step, self.config.group_size)
        return _draw(candidates, selection_weights(chances), n, random)

    def record(self, step: int, groups: Sequence[Group]) -> None:
        """Take in a finished step."""
        self.asked_before += len(groups)
        for group in groups:
            right = group.right_where_scored
            self.history.add(group.problem.id, step, sum(right), len(right))

    def restore(
        self, asked: int, lines: Iterable[Mapping[str, Any]], audited: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """Take in the finished steps of a run: how many questions they asked, and its rollouts.jsonl.

        `audited` are the "questions" of its audit.json: what the untrained model did.
        """
        self.asked_before = asked
        if self.config.selection == "adaptive":
            for count in audited:
                self.history.add(count["problem_id"], 0, count["right"], count["samples"])
            for line in lines:
                if not line.get("fault"):
                    self.history.add(line["problem_id"], line["step"], int(line["strict"]), 1)


def epoch_problems(
    problems: Sequence[Problem], start: int, n: int, seed: int, apart: int = 1
) -> list[Problem]:
    """The n problems from position `start` of an endless row of epochs, each shuffled by the seed.

    Any `apart` consecutive ones differ, also across the end of an epoch; `problems` must have at least that
    many.
    """
    size, positions = len(problems), range(start, start + n)
    last = positions[-1] // size if positions else -1
    orders = [_epoch_order(size, seed, epoch, apart) for epoch in range(last + 1)]  # each needs its last
    return [problems[orders[p // size][p % size]] for p in positions]


@cache
def _epoch_order(n: int, seed: int, epoch: int, apart: int) -> tuple[int, ...]:
    """The indices of n problems, shuffled; one that would repeat within `apart` positions is moved back."""
    order = list(range(n))
    Random(derive_seed(seed, "order", epoch)).shuffle(order)
    if epoch == 0 or apart == 1:
        return tuple(order)
    before, waiting, first = _epoch_order(n, seed, epoch - 1, apart)[1 - apart :], dict.fromkeys(order), []
    too_early = set(before)
    for earlier in before:
        first.append(next(index for index in waiting if index not in too_early))
        del waiting[first[-1]]
        too_early.remove(earlier)
    return (*first, *waiting)


class QuestionHistory:
    """Successes and trials of each question."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def add(self, problem_id: str, step: int, successes: int, trials: int) -> None:
        """Record completions of a question at a step, which is not before those recorded already."""
        record = self._records.setdefault(problem_id, _Record())
        old_successes, old_trials = record.at(step)
        record.successes, record.trials, record.step = old_successes + successes, old_trials + trials, step

    def signal_chances(self, problems: Sequence[Problem], step: int, group_size: int) -> list[float]:
        """For each problem the chance that its group at `step` has right and wrong completions."""
        counts = [self._records[p.id].at(step) if p.id in self._records else (0.0, 0.0) for p in problems]
        return signal_chances(counts, group_size)


def signal_chances(counts: Sequence[tuple[float, float]], group_size: int) -> list[float]:
    """For each question's successes and trials the chance that a group has right and wrong completions."""
    successes, trials = sum(s for s, _ in counts), sum(n for _, n in counts)
    mean = (successes + 1) / (trials + 2)  # of the task
    right, wrong = PRIOR_WEIGHT * mean, PRIOR_WEIGHT * (1 - mean)
    return [signal_chance(right + s, wrong + n - s, group_size) for s, n in counts]


def signal_chance(right: float, wrong: float, group_size: int) -> float:
    """The chance that of `group_size` completions some are right and some wrong, if p ~ Beta(right, wrong).

    >>> signal_chance(1.0, 1.0, 2)  # p uniform: 1 - 1/3 - 1/3
    0.3333333333333334
    """
    total = right + wrong
    all_right = prod((right + i) / (total + i) for i in range(group_size))
    all_wrong = prod((wrong + i) / (total + i) for i in range(group_size))
    return 1 - all_right - all_wrong


def selection_weights(chances: Sequence[float]) -> list[float]:
    """Of a draw, with a sum of 1: in proportion to the chances, with a uniform floor."""
    total, n = sum(chances), len(chances)
    return [FLOOR / n + (1 - FLOOR) * (chance / total if total else 1 / n) for chance in chances]


def _draw(problems: Sequence[Problem], weights: Sequence[float], n: int, random: Random) -> list[Problem]:
    """n draws without replacement in proportion to the weights.

    The n largest of log(u) / weight, with u uniform (Efraimidis and Spirakis 2006,
    https://doi.org/10.1016/j.ipl.2005.11.003).
    """
    keys = [log(1.0 - random.random()) / weight for weight in weights]
    order = sorted(range(len(problems)), key=keys.__getitem__, reverse=True)
    return [problems[i] for i in order[:n]]
