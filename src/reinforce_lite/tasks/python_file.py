"""A user's Python file as a task: `--task.name ./my_task.py`.

    from reinforce_lite import Problem

    def problems(split):                      # "train", "validation" or "test"
        return [Problem(id="1", question="What is 6 * 12?", gold="72")]

    def reward(problem, completion):          # the whole response, prefill included, as text
        return float(problem.gold in completion)

A module-level object `task` with these two methods works as well. For golds that are numbers,
`from reinforce_lite import number_reward as reward` is the reward of the built-in tasks. The file runs with
the user's rights, when a run or an evaluation needs it and at no other time.
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
from reinforce_lite.tasks.base import short_hash
from reinforce_lite.types import Problem, Reward, Split
from reinforce_lite.utils.text import one_line_error


def load(config: TaskConfig) -> "FileTask":
    """The task in the Python file `config.name`.

    Raises UsageError when the file does not exist, does not import or does not define a task.
    """
    path = Path(config.name).expanduser()
    return FileTask(path, _find_task(_import_file(path), path))


@dataclass(frozen=True, slots=True)
class FileTask:
    """A user's task; its problems are checked once and cached."""

    path: Path
    task: Any
    """The module or object that defines `problems` and `reward`."""
    _problems: dict[Split, Sequence[Problem]] = field(default_factory=dict, repr=False)

    def problems(self, split: Split) -> Sequence[Problem]:
        """Raises UsageError when the user's function raises, or returns anything but problems."""
        if split not in self._problems:
            self._problems[split] = self._read_problems(split)
        return self._problems[split]

    def reward(self, problem: Problem, completion: str) -> float | Reward:
        """See `Task`."""
        reward: float | Reward = self.task.reward(problem, completion)
        return reward

    def _read_problems(self, split: Split) -> Sequence[Problem]:
        call = f"{self.path}: problems({split!r})"
        try:
            problems = tuple(self.task.problems(split))
        except Exception as error:  # the user's code may raise anything
            raise UsageError(f"{call} raised {_describe(error, self.path)}") from error
        for index, problem in enumerate(problems):
            if defect := _find_defect(problem):
                raise UsageError(
                    f"{call}[{index}] {defect}",
                    "problems(split) must return a list of reinforce_lite.Problem",
                )
        return problems


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "task.name is a known task or the path of a Python file")
    # The path's hash keeps two files of the same name apart in sys.modules.
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
        raise UsageError(f"{path} does not import: {_describe(error, path)}", "fix the file") from error
    return module


def _describe(error: BaseException, path: Path) -> str:
    """The exception in one line, with the innermost line of the user's file in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return one_line_error(error) + (f" (line {lines[-1]})" if lines else "")


def _find_task(module: ModuleType, path: Path) -> Any:
    """The module itself, or its object `task`."""
    required = ("problems", "reward")
    for candidate in (module, getattr(module, "task", None)):
        if all(callable(getattr(candidate, name, None)) for name in required):
            return candidate
    missing = [name for name in required if not callable(getattr(module, name, None))]
    raise UsageError(
        f"{path} does not define {' and '.join(missing)}",
        "a task has problems(split) and reward(problem, completion), in the module or in an object `task`",
    )


def _find_defect(problem: object) -> str:
    if not isinstance(problem, Problem):
        return f"is of type {type(problem).__name__}, not Problem"
    for name in ("id", "question", "gold"):
        value = getattr(problem, name)
        if not isinstance(value, str):
            return f"has its {name} of type {type(value).__name__}, not text"
    return ""
