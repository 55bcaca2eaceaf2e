"""A user's Python file as a task: what is accepted, and what is refused."""

from pathlib import Path

import pytest

from helpers.tasks import load, load_error, reward_value
from reinforce_lite.tasks import check_task, task_fingerprint
from reinforce_lite.types import Problem

TASK = """
from dataclasses import dataclass
from reinforce_lite.types import Problem
def problems(split):
    return [Problem(id=split + str(i), question=f"{split} {i}?", gold=str(i)) for i in range(3)]
def reward(problem, completion):
    return 0.5 * (problem.gold in completion)
"""


def write_task(folder: Path, text: str) -> str:
    path = folder / "my_task.py"
    path.write_text(text)
    return str(path)


def test_python_file_module_is_a_task(tmp_path: Path) -> None:
    task = load(write_task(tmp_path, TASK))
    check_task(task)
    problems = task.problems("test")
    assert [p.id for p in problems] == ["test0", "test1", "test2"]
    assert [reward_value(task, problems[1], response) for response in ("1", "2")] == [0.5, 0.0]


def test_python_file_rewards_before_its_problems_are_asked_for(tmp_path: Path) -> None:
    task = load(write_task(tmp_path, TASK))
    assert reward_value(task, Problem("test1", "test 1?", "1"), "1") == 0.5


def test_python_file_object_called_task_is_a_task(tmp_path: Path) -> None:
    text = TASK.replace("def problems(split)", "class T:\n  def problems(self, split)")
    text = text.replace("def reward(", "  def reward(self, ") + "task = T()\n"
    task = load(write_task(tmp_path, text))
    assert reward_value(task, task.problems("train")[0], "0") == 0.5


def test_python_file_problems_are_read_once(tmp_path: Path) -> None:
    text = TASK.replace(
        "    return [Problem(id=split", "    import random\n    return [Problem(id=str(random.random())"
    )
    task = load(write_task(tmp_path, text))
    assert task.problems("train") == task.problems("train")


def test_python_file_with_other_hidden_tests_is_another_task(tmp_path: Path) -> None:
    text = TASK.replace("gold=str(i)", "gold=str(i), info={'tests': [i]}")
    (tmp_path / "changed").mkdir()
    tasks = [
        load(write_task(tmp_path, text)),
        load(write_task(tmp_path / "changed", text.replace("[i]}", "[i + 1]}"))),
        load(write_task(tmp_path / "changed", text.replace("[i]}", "{i}}"))),  # JSON has no sets
    ]
    assert len({task_fingerprint(task) for task in tasks}) == 3
    assert task_fingerprint(tasks[2]) == task_fingerprint(load(write_task(tmp_path, TASK)))


def test_python_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = load(write_task(tmp_path / "a", TASK))
    second = load(write_task(tmp_path / "b", TASK.replace("0.5", "0.7")))
    problem = first.problems("train")[0]
    second.problems("train")
    assert [reward_value(task, problem, "0") for task in (first, second)] == [0.5, 0.7]


def test_python_file_may_use_number_reward(tmp_path: Path) -> None:
    text = TASK.partition("def reward")[0] + "from reinforce_lite.tasks.base import number_reward as reward\n"
    task = load(write_task(tmp_path, text))
    assert reward_value(task, task.problems("train")[2], "<answer>2</answer>") == 1.0


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import no_such\n", "does not import: ModuleNotFoundError: No module named 'no_such' (line 1)"),
        (
            "def f():\n    return 1 / 0\nf()\n",
            "does not import: ZeroDivisionError: division by zero (line 2)",
        ),
        ("x = 1\n\ndef f(:\n", "does not import: SyntaxError: invalid syntax"),
        ("raise SystemExit(3)\n", "does not import: SystemExit: 3 (line 1)"),
        ("", "does not define problems and reward"),
        ("def problems(split): return []\n", "does not define reward"),
        (TASK + "reward = 3\n", "does not define reward"),
        (
            TASK + "def problems(split):\n    return 1 / 0\n",
            "raised ZeroDivisionError: division by zero (line 9)",
        ),
        (TASK + "def problems(split): return [1]\n", "problems('train')[0] is of type int, not Problem"),
        (
            TASK + "def problems(split): return [Problem('a', 'b', 'c'), Problem('a', 'b', 72)]\n",
            "problems('train')[1] has its gold of type int, not text",
        ),
        (TASK + "def problems(split): return None\n", "raised TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_python_file_errors_name_the_file_and_the_cause(tmp_path: Path, text: str, cause: str) -> None:
    error = load_error(write_task(tmp_path, text))
    assert cause in error.cause
    assert "my_task.py" in error.cause


def test_python_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    assert load_error(str(tmp_path / "none.py")).cause == f"there is no file {tmp_path / 'none.py'}"
