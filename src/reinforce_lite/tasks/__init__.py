"""Where problems come from: `load_task` turns the [task] section into a task, `check_task` validates it.

Each task is a module of this folder with a `load(config)`. It is imported only when its name is
asked for, since some tasks need an optional dependency.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from itertools import combinations
from typing import get_args

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.base import Task, normalize_question
from reinforce_lite.types import Split
from reinforce_lite.utils.text import did_you_mean

TASK_NAMES = ("wordmath", "gsm8k", "jsonl", "hub", "gym")
SPLITS: tuple[Split, ...] = get_args(Split)


def load_task(config: TaskConfig) -> Task:
    """The task that a [task] section names; a name that ends in .py is a user's own file.

    Raises UsageError for an unknown name, and for data that the task can't read.
    """
    if config.name.endswith(".py"):
        module = "python_file"
    elif config.name in TASK_NAMES:
        module = config.name
    else:
        known = f"known are {', '.join(TASK_NAMES)} and a Python file of your own (./my_task.py)"
        raise UsageError(
            f"there is no task {config.name!r}", did_you_mean(config.name, TASK_NAMES, otherwise=known)
        )
    task: Task = import_module(f"{__name__}.{module}").load(config)
    return task


def check_task(task: Task) -> None:
    """Refuse data that can't measure anything.

    Raises UsageError for an empty split, an id of two problems, and a question in two splits.
    """
    for split in SPLITS:
        if not task.problems(split):
            raise UsageError(
                f"the task has no {split} problems",
                "give it more data, or the missing split as a file or split of its own",
            )
    _check_ids(problem.id for split in SPLITS for problem in task.problems(split))
    for trained_on, held_out in combinations(SPLITS, 2):
        _check_disjoint(task, trained_on, held_out)


def _check_ids(ids: Iterable[str]) -> None:
    repeated = [name for name, uses in Counter(ids).items() if uses > 1]
    if repeated:
        raise UsageError(
            f"{len(repeated)} ids belong to more than one problem, the first is {repeated[0]!r}",
            "ids must be unique over train, validation and test",
        )


def _check_disjoint(task: Task, trained_on: Split, held_out: Split) -> None:
    questions = {normalize_question(problem.question) for problem in task.problems(trained_on)}
    shared = [p.id for p in task.problems(held_out) if normalize_question(p.question) in questions]
    if shared:
        raise UsageError(
            f"{len(shared)} {held_out} questions are also in {trained_on}, the first is {shared[0]!r}",
            f"remove them from {trained_on}: a question seen in training measures nothing",
        )


def task_fingerprint(task: Task) -> str:
    """A SHA-256 over every split, id, question and gold, so that a resumed run notices changed data."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for problem in task.problems(split):
            digest.update(json.dumps([split, problem.id, problem.question, problem.gold]).encode() + b"\n")
    return digest.hexdigest()
