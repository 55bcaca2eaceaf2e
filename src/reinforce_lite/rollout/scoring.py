"""Run a task's reward on responses, and contain its failures.

A reward is a user's code. Whatever it does must neither end a run overnight nor teach the policy anything.
A failure is counted, its rollout is made neutral (`neutralize`), and a run in which failures are common, or
cost much time, stops. The code of a file runs in processes of its own (`tasks/reward_worker.py`). A task that
was given as an object runs here: what it raises is contained, what it does to this process is not.
"""

import signal
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from statistics import fmean

from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.tasks.base import Task
from reinforce_lite.tasks.grading import grade
from reinforce_lite.tasks.numbers import is_number, write_gold
from reinforce_lite.tasks.reward_worker import Outcomes, WorkerTask
from reinforce_lite.tasks.rewards import Outcome, RewardFunction
from reinforce_lite.types import Completion, Group, Problem, Reward, Rollout, Verdict
from reinforce_lite.utils.text import one_line_error

MAX_FAULT_RATE = 0.2
MIN_CALLS = 50  # fewer calls say nothing about the rate
MAX_LOST_SECONDS = 240.0  # to calls that were ended, of the last MIN_CALLS
FAILED = Reward(0.0, Verdict(False, None, "the reward failed"))


class Scorer:
    """A task's reward with its failures contained and counted."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.calls = 0
        self.faults = 0
        self._recent: deque[Outcome] = deque(maxlen=MIN_CALLS)
        self._reward = None if isinstance(task, WorkerTask) else RewardFunction(task.reward)

    def probe(self, problem: Problem) -> None:
        """Call the reward once before training. Raises UsageError when it fails."""
        ((_, outcome),) = self._outcomes([(problem, "<think>probe</think><answer>0</answer>")])
        if outcome.fault:
            raise UsageError(
                f"the task's reward fails on problem {problem.id}: {outcome.fault}",
                "it must return a finite number or a reinforce_lite.Reward for any text",
            )

    def __call__(self, problem: Problem, response: str) -> tuple[Reward, str]:
        """The reward of one response; see `score`."""
        return self.score([(problem, response)])[0]

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[tuple[Reward, str]]:
        """The reward of each response, its strict verdict filled in, and the fault: "" unless it failed.

        Raises ReinforceLiteError when more than MAX_FAULT_RATE of all calls failed, or of the last MIN_CALLS
        where these cost MAX_LOST_SECONDS.
        """
        scored = [(FAILED, "")] * len(pairs)
        with closing(self._outcomes(pairs)) as outcomes:
            for position, outcome in outcomes:
                self._count(outcome)
                scored[position] = (outcome.reward or FAILED, outcome.fault)
        return scored

    def _outcomes(self, pairs: Sequence[tuple[Problem, str]]) -> Outcomes:
        if isinstance(self.task, WorkerTask):
            yield from self.task.outcomes(pairs)
        else:
            assert self._reward
            yield from ((i, _contained(self._reward, *pair)) for i, pair in enumerate(pairs))

    def _count(self, outcome: Outcome) -> None:
        self.calls += 1
        self.faults += bool(outcome.fault)
        self._recent.append(outcome)
        if not outcome.fault:
            return
        recent, lost = sum(bool(o.fault) for o in self._recent), sum(o.seconds for o in self._recent)
        if self.calls >= MIN_CALLS and self.faults > MAX_FAULT_RATE * self.calls:
            failed = f"{self.faults} of {self.calls} responses"
        elif lost > MAX_LOST_SECONDS and recent > MAX_FAULT_RATE * len(self._recent):
            failed = f"{recent} of the last {len(self._recent)} responses, which took {lost:.0f} seconds"
        else:
            return
        raise ReinforceLiteError(
            f"the task's reward failed on {failed}; last: {outcome.fault}",
            "fix the reward, then continue with --resume",
        )


def _contained(reward: RewardFunction, problem: Problem, response: str) -> Outcome:
    """The outcome of a call in this process; the exception of a signal handler passes through."""
    try:
        return reward([problem], [response])[0]
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # the user's code may raise anything
        by_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if isinstance(error, KeyboardInterrupt) and by_ctrl_c:
            raise
        return Outcome(None, one_line_error(error))


def make_rollouts(
    problem: Problem, completions: Sequence[Completion], scored: Sequence[tuple[str, tuple[Reward, str]]]
) -> tuple[Rollout, ...]:
    """The rollouts of a problem's completions; `scored` holds each one's response, reward and fault."""
    rollouts: list[Rollout] = []
    for completion, (response, (reward, fault)) in zip(completions, scored, strict=True):
        assert reward.strict, "tasks.check_reward fills it in"
        second = None if fault else second_opinion(problem, response, reward)
        verdicts = (reward.strict, reward.lenient)
        rollouts.append(Rollout(completion, response, reward.value, *verdicts, fault, second))
    return neutralize(rollouts)


def neutralize(rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """Give each rollout whose reward failed the mean reward of the others (0 if all failed).

    The group's mean stays the same; its standard deviation becomes smaller, and leave-one-out baselines move
    towards the mean. `fault` marks the rollout for weight 0 in the loss.
    """
    scored = [r.reward for r in rollouts if not r.fault]
    mean = fmean(scored) if len(set(scored)) > 1 else next(iter(scored), 0.0)  # equal ones stay exactly equal
    return tuple(replace(r, reward=mean) if r.fault else r for r in rollouts)


def check_faults(groups: Sequence[Group]) -> None:
    """Raise ReinforceLiteError where so many rewards of an evaluation failed that the others say nothing:
    all, or of at least MIN_CALLS more than MAX_FAULT_RATE.
    """
    faults = [r.fault for g in groups for r in g.rollouts]
    failed, calls = list(filter(None, faults)), len(faults)
    if len(failed) == calls or (calls >= MIN_CALLS and len(failed) > MAX_FAULT_RATE * calls):
        raise ReinforceLiteError(
            f"the task's reward failed on {len(failed)} of {calls} responses of an evaluation; last: "
            f"{failed[-1]}",
            "fix the reward, then continue with --resume, or evaluate again",
        )


def second_opinion(problem: Problem, response: str, reward: Reward) -> bool | None:
    """Whether the response is right by a verdict that is not rewarded, the lenient one of `tasks.grading`.

    For a user's own reward and for reasoning-gym it is the same check wherever the gold is one number: it
    needs no answer block, so it holds for any format. None where the gold is not a number. It can't tell
    when the reward itself pays for what lenient reads.
    """
    if reward.lenient is not None:
        return reward.lenient.correct
    gold = write_gold(problem.gold)  # a task given as an object is not checked, and may hold other types
    return grade(response, gold, mode="lenient").correct if is_number(gold) else None
