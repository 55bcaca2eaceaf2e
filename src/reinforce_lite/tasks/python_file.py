"""A user's Python file as a task: `--task.name ./my_task.py`.

    from reinforce_lite import Problem

    def problems(split):                      # "train", "validation" or "test"
        return [Problem(id="1", question="What is 6 * 12?", gold="72")]

    def reward(problem, completion):          # the whole response, prefill included, as text
        return float(problem.gold in completion)

A module-level object `task` with these two methods works as well, and so does a reward of several completions
(`rewards.py`). For golds that are numbers, `from reinforce_lite import number_reward as reward` is the reward
of the built-in tasks. The file runs with the user's rights, when a run or an evaluation needs it and at no
other time, and only in worker processes (`reward_worker.py`): this process knows the problems, with a hash
in place of their `info`, and names them by split and position.
"""

import sys
import tomllib
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.tasks.base import find_defect, hash_info, short_hash
from reinforce_lite.tasks.reward_worker import MAX_BATCH, WorkerTask
from reinforce_lite.tasks.rewards import RewardFunction, outcome_to_json
from reinforce_lite.types import SPLITS, Problem, Split
from reinforce_lite.utils.paths import expand_home, is_file
from reinforce_lite.utils.text import one_line_error

Rows = list[list[str]]
"""The problems of a split, as a worker tells them."""


def load(config: TaskConfig) -> "FileTask":
    """The task in the Python file `config.name`. From here on the file's code runs, in a worker.

    Raises UsageError when the file does not exist, does not import or does not define a task.
    """
    path = expand_home(config.name)
    if not is_file(path):
        raise UsageError(f"there is no file {path}", "task.name is a known task or the path of a Python file")
    try:
        task = FileTask(config, path)
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    task.start()
    return task


class FileTask(WorkerTask):
    """A user's task; its problems are read and checked once."""

    module = "python_file"

    def __init__(self, config: TaskConfig, path: Path) -> None:
        super().__init__(config, str(path))
        self.path = path
        self.about = path.read_bytes().decode("latin-1")  # a worker that starts later runs the same code
        self._rows: dict[Split, Rows] = {}
        self._problems: dict[Split, tuple[Problem, ...]] = {}
        self._places: dict[str, tuple[Split, int]] = {}

    def problems(self, split: Split) -> Sequence[Problem]:
        """Raises UsageError when the user's function raises, or returns anything but problems."""
        if split not in self._problems:
            self._rows[split] = rows = self.call("problems", split)
            self._problems[split] = problems = tuple(
                replace(Problem(*texts), info={"sha256": info} if info else {}) for *texts, info in rows
            )
            self._places |= {problem.id: (split, index) for index, problem in enumerate(problems)}
            self.splits = tuple(self._problems)
        return self._problems[split]

    def item(self, problem: Problem, completion: str) -> list[Any]:
        """See `WorkerTask`."""
        for split in SPLITS:  # a reward may be asked for before the problems are
            if problem.id not in self._places:
                self.problems(split)
        return [*self._places[problem.id], completion]

    def welcome(self, hello: Any) -> None:
        """Learn how the reward is called. Raises ReinforceLiteError when the problems have changed."""
        self.batch = MAX_BATCH if hello["batched"] else 1
        for split, rows in hello["problems"].items():
            if rows != self._rows[split]:
                raise ReinforceLiteError(
                    f"{self.path}: problems({split!r}) returns different problems, or problems with "
                    "different info, in another process",
                    "it must return the same at every call: seed what is random, sort what comes from a set",
                )


# ── In the worker ──


def serve(config: str, source: str) -> "UserFile":
    """The task of a [task] section, given as TOML, with the bytes of its file as characters."""
    path = expand_home(TaskConfig.model_validate(tomllib.loads(config)).name)
    sys.path.append(str(path.resolve().parent))  # modules beside the file; last, so that they hide none
    return UserFile(path, source.encode("latin-1"))


class UserFile:
    """The imported file: its problems, and its reward on some of them."""

    def __init__(self, path: Path, source: bytes) -> None:
        self.path = path
        self.task = _find_task(_import_source(path, source), path)
        self.reward = RewardFunction(self.task.reward)
        self._problems: dict[str, Sequence[Problem]] = {}

    def hello(self, splits: Sequence[str]) -> dict[str, Any]:
        """How the reward is called, and the problems of these splits."""
        return {"batched": self.reward.batched, "problems": {split: self.problems(split) for split in splits}}

    def problems(self, split: str) -> Rows:
        """Id, question, gold and solution of each problem, and the hash of its info."""
        return [[p.id, p.question, p.gold, p.solution, hash_info(p.info)] for p in self._read(split)]

    def rewards(self, items: Sequence[tuple[str, int, str]]) -> list[dict[str, Any]]:
        """The outcome of each (split, position, completion)."""
        problems = [self._read(split)[index] for split, index, _ in items]
        return [outcome_to_json(outcome) for outcome in self.reward(problems, [text for *_, text in items])]

    def describe(self, error: BaseException) -> str:
        """The exception in one line, with the line of the file."""
        return _describe(error, self.path)

    def _read(self, split: str) -> Sequence[Problem]:
        if split not in self._problems:
            self._problems[split] = _read_problems(self.task, self.path, split)
        return self._problems[split]


def _read_problems(task: Any, path: Path, split: str) -> Sequence[Problem]:
    call = f"{path}: problems({split!r})"
    try:
        problems = tuple(task.problems(split))
    except BaseException as error:  # the user's code may raise anything; only a worker runs it
        raise UsageError(f"{call} raised {_describe(error, path)}") from error
    for index, problem in enumerate(problems):
        if defect := find_defect(problem, ("id", "question", "gold", "solution")):
            raise UsageError(
                f"{call}[{index}] {defect}",
                "problems(split) must return a list of reinforce_lite.Problem",
            )
    return problems


def _import_source(path: Path, source: bytes) -> ModuleType:
    # The path's hash keeps it apart from modules of the same name in sys.modules.
    name = f"reinforce_lite_user_{path.stem}_{short_hash(str(path.resolve()))}"
    module = ModuleType(name)
    module.__file__ = str(path.absolute())
    sys.modules[name] = module  # before it runs: dataclasses and pickle look it up there
    try:
        exec(compile(source, module.__file__, "exec"), vars(module))  # noqa: S102  it is what the user asks for
    except BaseException as error:  # the user's code may raise anything; only a worker runs it
        remedy = "correct it; it runs in the folder of the command: find data from Path(__file__).parent"
        raise UsageError(f"{path} does not import: {_describe(error, path)}", remedy) from error
    return module


def _describe(error: BaseException, path: Path) -> str:
    """The exception in one line, with the innermost line of the user's file in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    file = str(path.absolute())
    lines = [frame.lineno for frame in frames if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
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
