"""Run a task's reward on responses, and contain its failures.

A reward is a user's code. Whatever it raises or returns must neither end a run overnight nor teach
the policy anything, hence the broad `except`. A failure is counted, its rollout is made neutral
(`neutralize`), and a run in which failures are common stops.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.tasks.base import Task
from reinforce_lite.tasks.grading import grade
from reinforce_lite.tasks.numbers import is_number
from reinforce_lite.types import Completion, Group, Problem, Prompt, Reward, Rollout, Verdict
from reinforce_lite.utils.text import one_line_error

MAX_FAULT_RATE = 0.2
MIN_CALLS = 50  # fewer calls say nothing about the rate


class Scorer:
    """A task's reward with its failures contained and counted."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.calls = 0
        self.faults = 0

    def probe(self, problem: Problem) -> None:
        """Call the reward once before training. Raises UsageError when it fails."""
        try:
            _checked(self.task.reward(problem, "<think>probe</think><answer>0</answer>"))
        except Exception as error:
            raise UsageError(
                f"the task's reward fails on problem {problem.id}: {one_line_error(error)}",
                "it must return a finite number or a reinforce_lite.Reward for any text",
            ) from error

    def __call__(self, problem: Problem, response: str) -> tuple[Reward, str]:
        """The reward of one response, its strict verdict filled in, and the fault: "" unless it failed.

        Raises ReinforceLiteError when more than MAX_FAULT_RATE of the calls failed.
        """
        self.calls += 1
        try:
            return _checked(self.task.reward(problem, response)), ""
        except Exception as error:
            self.faults += 1
            self._stop_if_common(error)
            return Reward(0.0, Verdict(False, None, "the reward failed")), one_line_error(error)

    def score_group(self, problem: Problem, prompt: Prompt, completions: Sequence[Completion]) -> Group:
        """The group of a problem's completions, each graded together with the prompt's prefill."""
        rollouts = [self._rollout(problem, prompt, completion) for completion in completions]
        return Group(problem, prompt, neutralize(rollouts))

    def _rollout(self, problem: Problem, prompt: Prompt, completion: Completion) -> Rollout:
        response = prompt.prefill + completion.text
        reward, fault = self(problem, response)
        strict = reward.strict or Verdict(False, None, "not judged")
        second = second_opinion(problem, response, reward)
        return Rollout(completion, response, reward.value, strict, reward.lenient, fault, second)

    def _stop_if_common(self, error: Exception) -> None:
        if self.calls >= MIN_CALLS and self.faults > MAX_FAULT_RATE * self.calls:
            raise ReinforceLiteError(
                f"the task's reward failed on {self.faults} of {self.calls} responses; "
                f"last: {one_line_error(error)}",
                "fix the reward, then continue with --resume",
            ) from error


def neutralize(rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """Give each rollout whose reward failed the mean reward of the others (0 if all failed).

    So it does not move its group's baseline. Its `fault` marks it for weight 0 in the loss.
    """
    usable = [r.reward for r in rollouts if not r.fault]
    mean = sum(usable) / len(usable) if usable else 0.0
    return tuple(replace(r, reward=mean) if r.fault else r for r in rollouts)


def second_opinion(problem: Problem, response: str, reward: Reward) -> bool | None:
    """Whether the response is right by a verdict that is not rewarded, the lenient one of `tasks.grading`.

    For a user's own reward and for reasoning-gym it is the same check wherever the gold is one number: it
    needs no answer block, so it holds for any format. None where the gold is not a number. It can't tell
    when the reward itself pays for what lenient reads.
    """
    if reward.lenient is not None:
        return reward.lenient.correct
    gold = str(problem.gold)  # a task given as an object is not checked, and may hold other types
    return grade(response, gold, mode="lenient").correct if is_number(gold) else None


def _checked(result: object) -> Reward:
    """The reward with a finite value and a strict verdict. Raises TypeError and ValueError."""
    reward = result if isinstance(result, Reward) else Reward(_finite_number(result))
    value = _finite_number(reward.value)
    strict = reward.strict or Verdict(value >= 1, None, "right" if value >= 1 else f"reward {value:g}")
    return Reward(value, strict, reward.lenient)


def _finite_number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"the reward returned {type(value).__name__} {value!r:.60}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"the reward returned {value}")
    return float(value)
