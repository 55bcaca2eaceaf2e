"""Reinforce-Lite: make a language model reason better by rewarding right answers.

    import reinforce_lite as rl

    run = rl.train("quickstart", {"train.steps": 10})
    print(run.before, run.after)
    print(rl.ask(run, "Ana has 3 pens and buys 4. How many has she?"))

A task of your own is an object or a Python file with `problems(split)` and `reward(problem, completion)`.
What is listed in `__all__` is public; everything else may change (docs/api.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reinforce_lite.types import Problem, Reward, Verdict
from reinforce_lite.utils.logs import quiet_dependencies

if TYPE_CHECKING:
    from reinforce_lite.api import Response, ask, evaluate, load, load_base, train
    from reinforce_lite.config import Config
    from reinforce_lite.engines.scripted import ScriptedEngine
    from reinforce_lite.evaluation.evaluate import Evaluation
    from reinforce_lite.runlog.run import Run
    from reinforce_lite.tasks.base import Task, number_reward
    from reinforce_lite.tasks.grading import grade

    __version__: str

__all__ = [
    "Config",
    "Evaluation",
    "Problem",
    "Response",
    "Reward",
    "Run",
    "ScriptedEngine",
    "Task",
    "Verdict",
    "ask",
    "evaluate",
    "grade",
    "load",
    "load_base",
    "number_reward",
    "train",
]

_LAZY = {
    "Config": "config",
    "Evaluation": "evaluation.evaluate",
    "Response": "api",
    "Run": "runlog.run",
    "ScriptedEngine": "engines.scripted",
    "Task": "tasks.base",
    "ask": "api",
    "evaluate": "api",
    "grade": "tasks.grading",
    "load": "api",
    "load_base": "api",
    "number_reward": "tasks.base",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: some of them need torch."""
    if name == "__version__":
        return import_module("reinforce_lite.utils.program").package_version("reinforce-lite")
    if name not in _LAZY:
        raise AttributeError(f"module 'reinforce_lite' has no attribute {name!r}")
    quiet_dependencies()
    return getattr(import_module(f"reinforce_lite.{_LAZY[name]}"), name)
