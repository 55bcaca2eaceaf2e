"""A user's Python file as a task: `--task.name ./my_task.py`.

    from reinforce_lite.records import Problem

    def problems(split):                      # "train", "validation" or "test"
        return [Problem(id="1", question="What is 6 * 12?", gold="72")]

    def reward(problem, completion):          # the assistant's whole turn, as text
        return float(problem.gold in completion)

A module-level object `task` with these two does as well. For number answers,
`from reinforce_lite.tasks.base import number_reward as reward` is the reward of our own tasks.
The file runs with the user's rights, when a run or an audit needs it and at no other time.
"""

import importlib.util
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.tables import short_hash
from reinforce_lite.types import Problem, Reward, Split


def load(config: TaskConfig) -> "FileTask":
    """The task in the Python file `config.name`."""
    path = Path(config.name).expanduser()
    return FileTask(path, _user_task(_module(path), path))


@dataclass(frozen=True, slots=True)
class FileTask:
    """A user's task, its problems checked and kept."""

    path: Path
    task: Any
    """What defines `problems` and `reward`."""
    _found: dict[Split, Sequence[Problem]] = field(default_factory=dict, repr=False)

    def problems(self, split: Split) -> Sequence[Problem]:
        if split not in self._found:
            self._found[split] = self._ask(split)
        return self._found[split]

    def reward(self, problem: Problem, completion: str) -> float | Reward:
        reward: float | Reward = self.task.reward(problem, completion)
        return reward

    def _ask(self, split: Split) -> Sequence[Problem]:
        call = f"{self.path}: problems({split!r})"
        try:
            found = list(self.task.problems(split))
        except Exception as error:  # the user's code may raise anything
            raise UsageError(f"{call} raised {_told(error, self.path)}") from error
        for index, problem in enumerate(found):
            if fault := _fault(problem):
                raise UsageError(
                    f"{call}[{index}] {fault}", "it returns a list of reinforce_lite.records.Problem"
                )
        return tuple(found)


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "task.name is a known task or the path of a Python file")
    # Its own name for each path, so that two files named alike don't meet in sys.modules.
    name = f"reinforce_lite_user_{path.stem}_{short_hash(str(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        del sys.modules[name]
        raise UsageError(f"{path} does not import: {_told(error, path)}", "mend the file") from error
    return module


def _told(error: BaseException, path: Path) -> str:
    """The exception in one line, with the last line of the user's file that it came from."""
    places = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        places.append(error.lineno)
    words = (str(error).splitlines() or [""])[0]
    where = f" (line {places[-1]})" if places else ""
    return f"{type(error).__name__}{': ' + words if words else ''}{where}"


def _user_task(module: ModuleType, path: Path) -> Any:
    """The module itself, or its object `task`."""
    wanted = ("problems", "reward")
    for candidate in (module, getattr(module, "task", None)):
        if all(callable(getattr(candidate, name, None)) for name in wanted):
            return candidate
    missing = [name for name in wanted if not callable(getattr(module, name, None))]
    raise UsageError(
        f"{path} does not define {' and '.join(missing)}",
        "a task has problems(split) and reward(problem, completion), in the module or in an object `task`",
    )


def _fault(problem: object) -> str:
    if not isinstance(problem, Problem):
        return f"is of type {type(problem).__name__}, not Problem"
    for name in ("id", "question", "gold"):
        kind = type(getattr(problem, name))
        if not issubclass(kind, str):
            return f"has its {name} of type {kind.__name__}, not text"
    return ""
