"""Where problems come from: `load_task` turns the [task] section into a task, `check_task` validates it.

Each task is a module of this folder with a `load(config)`. It is imported only when its name is
asked for, since some tasks need an optional dependency.
"""

import hashlib
import inspect
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from itertools import combinations
from pathlib import Path

from reinforce_lite.config import Config, TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks import grading, numbers, running_text
from reinforce_lite.tasks.base import (
    NumberTask,
    Task,
    find_defect,
    hash_info,
    loose_question,
    normalize_question,
)
from reinforce_lite.tasks.python_file import FileTask
from reinforce_lite.tasks.stopping import DEFAULT_STOPS
from reinforce_lite.types import SPLITS, Split
from reinforce_lite.utils.paths import expand_home, is_file
from reinforce_lite.utils.text import did_you_mean

logger = logging.getLogger(__name__)

TASK_NAMES = ("wordmath", "gsm8k", "jsonl", "hub", "gym")


def load_task(config: TaskConfig) -> Task:
    """The task that a [task] section names; a name that ends in .py is a user's own file.

    Raises UsageError for an unknown name, and for data that the task can't read.
    """
    if config.name.endswith(".py"):
        module = "python_file"
        if is_file(file := expand_home(config.name)):
            logger.warning("running the task file %s", file.resolve())
    elif config.name in TASK_NAMES:
        module = config.name
    else:
        known = (
            f"known are {', '.join(TASK_NAMES)} and a Python file of your own (./my_task.py); "
            "a task that was given as an object is given again in Python: rl.train(..., task=...)"
        )
        raise UsageError(
            f"there is no task {config.name!r}", did_you_mean(config.name, TASK_NAMES, otherwise=known)
        )
    task: Task = import_module(f"{__name__}.{module}").load(config)
    return task


def stop_strings(config: Config) -> tuple[str, ...]:
    """What ends a completion besides the model itself; a task of the user's own has no answer format."""
    if config.rollout.stop is not None:
        return config.rollout.stop
    return DEFAULT_STOPS[config.task.answer_format] if config.task.name in TASK_NAMES else ()


def require_task(task: object) -> None:
    """Raises UsageError, which says how to make one, for an object that is no task, such as a function or a
    class, and for one whose problems are not a list of Problem with texts as ids and questions. A gold may be
    of any type: only a reward of the task's own reads it.
    """
    what = f"task is {task!r:.80}, not an object with problems(split) and reward(problem, completion)"
    if isinstance(task, str):
        raise UsageError(what, f'name a file or a shipped task in the overrides: {{"task.name": {task!r}}}')
    if inspect.isclass(task):
        raise UsageError(what, f"make an object of the class: task={task.__name__}()")
    if not all(callable(getattr(task, name, None)) for name in ("problems", "reward")):
        raise UsageError(
            what,
            "write both functions, then: from types import SimpleNamespace; "
            "task = SimpleNamespace(problems=problems, reward=reward)",
        )
    for split in SPLITS:
        problems, call = task.problems(split), f"the task's problems({split!r})"  # type: ignore[attr-defined]
        remedy = "problems(split) must return a list of reinforce_lite.Problem"
        if not isinstance(problems, Sequence):
            raise UsageError(f"{call} is of type {type(problems).__name__}, not a list", remedy)
        for index, problem in enumerate(problems):
            if defect := find_defect(problem, ("id", "question")):
                raise UsageError(f"{call}[{index}] {defect}", remedy)


def check_task(task: Task) -> None:
    """Refuse data that can't measure anything, and warn of data that may not.

    Raises UsageError for an empty split, an id of two problems, and a question in two splits. Warns of a
    question that is repeated in its split, and of one that two splits spell in two ways.
    """
    for split in SPLITS:
        if not task.problems(split):
            raise UsageError(
                f"the task has no {split} problems",
                "give it more data, or the missing split as a file or split of its own",
            )
    _check_ids(problem.id for split in SPLITS for problem in task.problems(split))
    _check_questions(task)


def _check_ids(ids: Iterable[str]) -> None:
    repeated = [name for name, uses in Counter(ids).items() if uses > 1]
    if repeated:
        raise UsageError(
            f"{len(repeated)} ids belong to more than one problem, the first is {repeated[0]!r}",
            "ids must be unique over train, validation and test",
        )


def _check_questions(task: Task) -> None:
    exact, loose = (
        {split: [key(problem.question) for problem in task.problems(split)] for split in SPLITS}
        for key in (normalize_question, loose_question)
    )
    for split, questions in exact.items():
        if repeated := len(questions) - len(set(questions)):
            logger.warning("%d of %d %s questions repeat another one", repeated, len(questions), split)
    for trained_on, held_out in combinations(SPLITS, 2):
        if shared := _shared(task, exact, trained_on, held_out):
            raise UsageError(
                f"{len(shared)} {held_out} questions are also in {trained_on}, the first is {shared[0]!r}",
                f"remove them from {trained_on}: a question seen in training measures nothing",
            )
        if shared := _shared(task, loose, trained_on, held_out):
            logger.warning(
                "%d %s questions differ from one in %s only in case, punctuation or the spelling of numbers, "
                "the first is %r: a question seen in training measures nothing",
                *(len(shared), held_out, trained_on, shared[0]),
            )


def _shared(task: Task, keys: Mapping[Split, list[str]], trained_on: Split, held_out: Split) -> list[str]:
    """Ids of the held-out problems whose key is also one of the split that is trained on."""
    known = set(keys[trained_on])
    return [p.id for p, key in zip(task.problems(held_out), keys[held_out], strict=True) if key in known]


def task_fingerprint(task: Task) -> str:
    """A SHA-256 over every split, id, question and gold, so that a resumed run notices changed data.

    Except in a `NumberTask`, whose reward reads neither, the solution counts too, and info that can be
    written as JSON. A gold that can't be counts by its type.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        for problem in task.problems(split):
            fields = [split, problem.id, problem.question, problem.gold]
            if type(task) is not NumberTask:
                fields += filter(None, (problem.solution, hash_info(problem.info)))
            digest.update(json.dumps(fields, default=lambda gold: type(gold).__name__).encode() + b"\n")
    return digest.hexdigest()


def reward_sources(task: Task) -> dict[str, str]:
    """The SHA-256 of each source file of the reward, by its name, so that a resumed run notices a change.

    They are the task's own file and the modules with which number tasks grade. Modules that a user's file
    imports are left out, and so is a task that was typed into an interpreter.
    """
    files = {module.__name__: Path(str(module.__file__)) for module in (grading, numbers, running_text)}
    if own := _source_file(task):
        files[own.name] = own
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def _source_file(task: Task) -> Path | None:
    if isinstance(task, FileTask):
        return task.path
    try:
        file = inspect.getsourcefile(task if inspect.ismodule(task) else type(task))
    except (TypeError, OSError):
        return None
    return Path(file) if file and Path(file).is_file() else None
