"""One-step word problems whose reward is a coin toss; verdicts are unchanged (controls.py).

The coin is a hash of the problem and the completion: a resumed run sees the same coins, and what they pay for
on one problem says nothing about another.
"""

from dataclasses import replace

from reinforce_lite import Problem, Reward, number_reward
from reinforce_lite.config import TaskConfig
from reinforce_lite.tasks.wordmath import load
from reinforce_lite.utils.seeding import hash_fraction

problems = load(TaskConfig(name="wordmath", level=1)).problems


def reward(problem: Problem, completion: str) -> Reward:
    """0 or 1, each with probability one half."""
    heads = hash_fraction(f"coin {problem.id} {completion}") < 0.5
    return replace(number_reward(problem, completion), value=float(heads))
