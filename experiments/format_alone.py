"""One-step word problems whose reward is for the format alone; verdicts are unchanged (controls.py)."""

from dataclasses import replace

from reinforce_lite import Problem, Reward, number_reward
from reinforce_lite.config import TaskConfig
from reinforce_lite.tasks.wordmath import load

IN_FORMAT = ("right", "another number", "a fraction where the gold is an integer")
"""Reasons of a strict verdict on an answer block with a number."""

problems = load(TaskConfig(name="wordmath", level=1)).problems


def reward(problem: Problem, completion: str) -> Reward:
    """1 for an answer block with a number, right or wrong."""
    graded = number_reward(problem, completion)
    assert graded.strict is not None
    return replace(graded, value=float(graded.strict.reason in IN_FORMAT))
