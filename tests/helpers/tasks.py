"""Tasks made from rows and [task] sections, and the errors that loading one ends in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks import load_task
from reinforce_lite.tasks.base import Task
from reinforce_lite.types import SPLITS, Problem, Reward


def load(name: str, **section: Any) -> Task:
    return load_task(TaskConfig(name=name, **section))


def load_error(name: str, **section: Any) -> UsageError:
    """The error of loading this section and asking for its problems: a line of cause, one of remedy."""
    with pytest.raises(UsageError) as caught:
        load(name, **section).problems("train")
    assert "\n" not in caught.value.cause
    assert "\n" not in caught.value.remedy
    return caught.value


def write_rows(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    """A JSON lines file of these rows; text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sums(n: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows of the n problems i + 1 from `start`."""
    return [{"question": f"How much is {i} and 1?", "answer": str(i + 1)} for i in range(start, start + n)]


def all_problems(task: Task) -> list[Problem]:
    return [problem for split in SPLITS for problem in task.problems(split)]


def only_problem(folder: Path, *rows: Mapping[str, Any] | str, **section: Any) -> Problem:
    """The one problem in the file one.jsonl of these rows."""
    (problem,) = all_problems(load("jsonl", path=str(write_rows(folder / "one.jsonl", rows)), **section))
    return problem


def reward_value(task: Task, problem: Problem, response: str) -> float:
    reward = task.reward(problem, response)
    return reward.value if isinstance(reward, Reward) else reward
