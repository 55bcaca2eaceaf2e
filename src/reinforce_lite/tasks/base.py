"""What a task is: where problems come from, and what an answer to one is worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from reinforce_lite.tasks.grading import grade
from reinforce_lite.types import Problem, Reward, Split


class Task(Protocol):
    """Problems with known answers, in three parts that share none, and a reward.

    A Python module with these two functions is a task too: see `tasks/file.py`.
    """

    def problems(self, split: Split) -> Sequence[Problem]:
        """The same problems in the same order at every call; ids are unique over all splits."""
        ...

    def reward(self, problem: Problem, completion: str) -> float | Reward:
        """What the assistant's whole turn, the begun part included, is worth."""
        ...


@dataclass(frozen=True, slots=True)
class NumberTask:
    """A task whose problems are at hand and whose answers are numbers."""

    train: tuple[Problem, ...]
    validation: tuple[Problem, ...]
    test: tuple[Problem, ...]

    def problems(self, split: Split) -> Sequence[Problem]:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def reward(self, problem: Problem, completion: str) -> Reward:
        return number_reward(problem, completion)


def number_reward(problem: Problem, completion: str) -> Reward:
    """1 for a right final number, 0 otherwise, with the strict and the lenient verdict."""
    strict = grade(completion, problem.gold, mode="strict")
    lenient = grade(completion, problem.gold, mode="lenient")
    return Reward(float(strict.correct), strict, lenient)


def normalized(question: str) -> str:
    """What two writings of one question have in common: spaces and line ends don't count."""
    return " ".join(question.split())
