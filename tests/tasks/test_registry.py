"""Which task a [task] section loads, and which data `check_task` refuses."""

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.tasks import load, load_error
from helpers.tiny import ToyTask
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks import (
    check_task,
    grading,
    numbers,
    reward_sources,
    running_text,
    task_fingerprint,
)
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.types import SPLITS, Problem, Split


def make_problem(name: str, question: str = "", gold: str = "1") -> Problem:
    return Problem(name, question or f"question {name}", gold)


A, B, C = (make_problem(name) for name in "abc")


def test_load_task_suggests_the_nearest_name() -> None:
    assert load_error("wordmth").remedy == "did you mean 'wordmath'?"
    assert "my_task.py" in load_error("chess").remedy


@pytest.mark.parametrize(
    ("section", "module", "extra"),
    [
        ({"name": "hub", "path": "a/b"}, "datasets", "hub"),
        ({"name": "gym", "path": "leg_counting"}, "reasoning_gym", "gym"),
    ],
)
def test_load_task_says_how_to_install_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch, section: dict[str, str], module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert f'pip install "reinforce-lite[{extra}]"' in load_error(**section).remedy


def test_check_task_passes_good_data(caplog: pytest.LogCaptureFixture) -> None:
    check_task(NumberTask((A,), (B,), (C,)))
    assert not caplog.text


@pytest.mark.parametrize("empty", SPLITS)
def test_check_task_names_an_empty_split(empty: Split) -> None:
    problems = {split: () if split == empty else (make_problem(split),) for split in SPLITS}
    with pytest.raises(UsageError, match=f"no {empty} problems"):
        check_task(NumberTask(problems["train"], problems["validation"], problems["test"]))


@pytest.mark.parametrize(
    ("held_out", "trained_on"), [("test", "train"), ("validation", "train"), ("test", "validation")]
)
def test_check_task_counts_questions_in_two_splits(held_out: Split, trained_on: Split) -> None:
    problems: dict[Split, tuple[Problem, ...]] = {split: (make_problem(split),) for split in SPLITS}
    problems[trained_on] += (make_problem("a", "How many eggs?"), make_problem("b", "How many hens?"))
    problems[held_out] += (make_problem("c", "How  many\neggs? "), make_problem("d", "How many hens?"))
    with pytest.raises(UsageError) as caught:
        check_task(NumberTask(problems["train"], problems["validation"], problems["test"]))
    assert re.match(rf"2 {held_out} questions .* in {trained_on}, .* 'c'$", caught.value.cause)


def test_check_task_tells_questions_that_two_splits_spell_differently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train = (A, make_problem("x", "Ann pays $1,000. How much is left?"))
    test = (C, make_problem("y", "Ann pays $1000; how much is left"))
    check_task(NumberTask(train, (B,), test))
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("1 test questions")
    assert "train" in message
    assert "'y'" in message


def test_check_task_counts_questions_that_repeat_in_a_split(caplog: pytest.LogCaptureFixture) -> None:
    check_task(NumberTask((A, make_problem("x", "question  a"), make_problem("y", "question a")), (B,), (C,)))
    assert "2 of 3 train questions repeat" in caplog.text


def test_check_task_finds_an_id_in_two_splits() -> None:
    with pytest.raises(UsageError, match=r"^1 ids .* 'a'\n"):
        check_task(NumberTask((A,), (B,), (make_problem("a", "another"),)))


class OwnTask(NumberTask):
    """Its reward may read more than the gold."""


def test_task_fingerprint_changes_with_the_data_and_only_with_it() -> None:
    task = NumberTask((A,), (B,), (C,))
    same = NumberTask((make_problem("a"),), (make_problem("b"),), (make_problem("c"),))
    changed = [
        NumberTask((make_problem("a", gold="2"),), task.validation, task.test),
        NumberTask((make_problem("a", "other"),), task.validation, task.test),
        NumberTask((make_problem("z", "question a"),), task.validation, task.test),
        NumberTask(task.train, task.test, task.validation),
        NumberTask((*task.train, make_problem("d")), task.validation, task.test),
        NumberTask(task.train, (*task.validation, *task.test), ()),
        OwnTask((replace(A, info={"tests": [1, 2]}),), task.validation, task.test),
        OwnTask((replace(A, info={"tests": [1, 3]}),), task.validation, task.test),
        OwnTask((replace(A, solution="1 + 0"),), task.validation, task.test),
    ]
    assert task_fingerprint(task) == task_fingerprint(same)
    solved = NumberTask((replace(A, solution="1 + 0"),), task.validation, task.test)  # its reward reads none
    assert task_fingerprint(task) == task_fingerprint(solved)
    assert len({task_fingerprint(each) for each in (task, *changed)}) == 1 + len(changed)


def test_reward_sources_are_the_tasks_file_and_the_grading(tmp_path: Path) -> None:
    def sha256(file: str | None) -> str:
        assert file
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()

    graded = {module.__name__: sha256(module.__file__) for module in (grading, numbers, running_text)}
    path = tmp_path / "my_task.py"
    path.write_text("def problems(split):\n    return []\ndef reward(problem, completion):\n    return 1\n")
    of_file = reward_sources(load(str(path)))
    assert of_file == graded | {"my_task.py": sha256(str(path))}
    of_object = reward_sources(ToyTask())
    assert of_object["tiny.py"] == sha256(sys.modules[ToyTask.__module__].__file__)
    assert set(reward_sources(NumberTask((), (), ()))) == {*graded, "base.py"}


def test_reward_sources_of_a_task_without_a_file_are_the_grading_alone() -> None:
    typed = type("Typed", (), {"__module__": "typed into an interpreter"})
    modules = {f"reinforce_lite.tasks.{name}" for name in ("grading", "numbers", "running_text")}
    assert set(reward_sources(typed())) == modules
