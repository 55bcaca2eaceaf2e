"""Reinforce-Lite: make a language model reason better by rewarding right answers.

    import reinforce_lite as rl

    run = rl.train("quickstart", {"train.steps": 10})
    rl.evaluate(str(run.path))

A task of one's own is an object (or a Python file) with `problems(split)` and
`reward(problem, completion)`; Problem and Reward are what they give.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reinforce_lite.types import Problem, Reward, Verdict
from reinforce_lite.utils.logs import quiet_dependencies

if TYPE_CHECKING:
    from reinforce_lite.api import evaluate, train

__all__ = ["Problem", "Reward", "Verdict", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    """`train` and `evaluate` import torch, so they are fetched when first asked for."""
    if name in ("train", "evaluate"):
        quiet_dependencies()
        return getattr(import_module("reinforce_lite.api"), name)
    raise AttributeError(f"module 'reinforce_lite' has no attribute {name!r}")
