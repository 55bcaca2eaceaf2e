"""Which task a [task] section loads, and which data `check_task` refuses."""

import re
import sys

import pytest

from helpers.tasks import load_error
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks import SPLITS, check_task, task_fingerprint
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.types import Problem, Split


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


def test_check_task_passes_good_data() -> None:
    check_task(NumberTask((A,), (B,), (C,)))


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


def test_check_task_finds_an_id_in_two_splits() -> None:
    with pytest.raises(UsageError, match=r"^1 ids .* 'a'\n"):
        check_task(NumberTask((A,), (B,), (make_problem("a", "another"),)))


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
    ]
    assert task_fingerprint(task) == task_fingerprint(same)
    assert len({task_fingerprint(each) for each in (task, *changed)}) == 1 + len(changed)
