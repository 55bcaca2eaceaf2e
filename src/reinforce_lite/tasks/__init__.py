"""Where problems come from: `load` turns the [task] section into a task, `check` looks it over.

Each task is a module of its own here with a `load(config)`; it is imported only when asked for,
since some need an optional dependency.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from itertools import combinations
from typing import get_args

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.base import Task, normalized
from reinforce_lite.types import Split

NAMES = ("wordmath", "gsm8k", "jsonl", "hub", "gym")
SPLITS: tuple[Split, ...] = get_args(Split)


def load_task(config: TaskConfig) -> Task:
    """The task that a [task] section names; a name that ends in .py is a user's own file."""
    if config.name.endswith(".py"):
        module = "python_file"
    elif config.name in NAMES:
        module = config.name
    else:
        raise _unknown(config.name)
    task: Task = import_module(f"{__name__}.{module}").load(config)
    return task


def _unknown(name: str) -> UsageError:
    near = get_close_matches(name, NAMES, n=1)
    known = f"known are {', '.join(NAMES)} and a Python file of your own (./my_task.py)"
    return UsageError(f"there is no task {name!r}", f"did you mean {near[0]!r}?" if near else known)


def check_task(task: Task) -> None:
    """Refuse data that can't measure anything: an empty split, one question in two, an id used twice."""
    for split in SPLITS:
        if not task.problems(split):
            raise UsageError(
                f"the task has no {split} problems",
                "give it more data, or the missing part as a file or split of its own",
            )
    _check_ids(problem.id for split in SPLITS for problem in task.problems(split))
    for learned, held_out in combinations(SPLITS, 2):
        _check_apart(task, learned, held_out)


def _check_ids(ids: Iterable[str]) -> None:
    twice = [name for name, uses in Counter(ids).items() if uses > 1]
    if twice:
        raise UsageError(
            f"{len(twice)} ids stand for more than one problem, the first is {twice[0]!r}",
            "ids must be unique over train, validation and test",
        )


def _check_apart(task: Task, learned: Split, held_out: Split) -> None:
    questions = {normalized(problem.question) for problem in task.problems(learned)}
    shared = [p.id for p in task.problems(held_out) if normalized(p.question) in questions]
    if shared:
        raise UsageError(
            f"{len(shared)} {held_out} questions also stand in {learned}, the first is {shared[0]!r}",
            f"remove them from {learned}: what was seen before measures nothing",
        )


def task_fingerprint(task: Task) -> str:
    """A hash over every id, question and answer, so that a resume can notice changed data."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for problem in task.problems(split):
            digest.update(json.dumps([split, problem.id, problem.question, problem.gold]).encode() + b"\n")
    return digest.hexdigest()
