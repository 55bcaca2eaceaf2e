"""Run a task's reward on completions, and contain what goes wrong in it.

A reward is a user's code: whatever it raises or returns must not take the run down at three in the
morning, and must not teach the policy anything either. The broad `except` is for that reason. A
fault is counted, its rollout is made neutral (see `rollout.py`), and a run in which faults are
common stops.
"""

import math
from typing import Any

from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.tasks.grading import grade, is_number
from reinforce_lite.types import Problem, Reward, Verdict

MAX_FAULT_RATE = 0.2
MIN_CALLS = 50  # before the rate means anything


class Scorer:
    """A task's reward with its faults contained and counted."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.calls = 0
        self.faults = 0

    def probe(self, problem: Problem) -> None:
        """Try the reward once before training. Raises UsageError for what it would do wrong."""
        try:
            _checked(self.task.reward(problem, "<think>probe</think><answer>0</answer>"))
        except Exception as error:
            raise UsageError(
                f"the task's reward fails on problem {problem.id}: {_said(error)}",
                "it must return a finite number or a reinforce_lite.Reward for any text",
            ) from error

    def __call__(self, problem: Problem, response: str) -> tuple[Reward, str]:
        """The reward of one response with its strict verdict filled in, and what went wrong, if anything.

        Raises ReinforceLiteError when more than a fifth of the calls went wrong.
        """
        self.calls += 1
        try:
            return _checked(self.task.reward(problem, response)), ""
        except Exception as error:
            self.faults += 1
            self._stop_if_common(error)
            return Reward(0.0, Verdict(False, None, "the reward failed")), _said(error)

    def _stop_if_common(self, error: Exception) -> None:
        if self.calls >= MIN_CALLS and self.faults > MAX_FAULT_RATE * self.calls:
            raise ReinforceLiteError(
                f"the task's reward failed on {self.faults} of {self.calls} answers; last: {_said(error)}",
                "mend the reward, then go on with --resume",
            ) from error


def second_opinion(problem: Problem, response: str, reward: Reward) -> bool | None:
    """Whether the response is right by a verdict that the reward does not pay: its last number is the gold.

    Our number tasks pay the strict verdict, so this is their lenient one. A reward of a user's own or of
    reasoning-gym is checked in the same way wherever the gold answer is one number: it asks for no answer
    block, so it holds for any format. None where the gold is no number. It is blind to a reward that
    itself pays for the last number.
    """
    if reward.lenient is not None:
        return reward.lenient.correct
    gold = str(problem.gold)  # an object given as a task is not checked to hold text
    return grade(response, gold, mode="lenient").correct if is_number(gold) else None


def _checked(result: object) -> Reward:
    reward = result if isinstance(result, Reward) else Reward(_number(result))
    value = _number(reward.value)
    strict = reward.strict or Verdict(value >= 1, None, "right" if value >= 1 else f"reward {value:g}")
    return Reward(value, strict, reward.lenient)


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"the reward returned {type(value).__name__} {value!r:.60}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"the reward returned {value}")
    return float(value)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
