"""The reward of number tasks."""

from pathlib import Path

import pytest

from helpers.tasks import load, reward_value, sums, write_rows
from reinforce_lite.tasks.base import NumberTask, loose_question
from reinforce_lite.types import Problem


def test_number_task_rewards_strict_and_reports_lenient() -> None:
    problem = Problem("p", "?", "1,234")
    task = NumberTask((problem,), (), ())
    for response, value, strict, lenient in (
        ("<answer>1234</answer>", 1.0, True, True),
        ("it is 1234", 0.0, False, True),
        ("it is 4321", 0.0, False, False),
    ):
        reward = task.reward(problem, response)
        assert reward.strict
        assert reward.lenient
        assert (reward.value, reward.strict.correct, reward.lenient.correct) == (value, strict, lenient)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("How many eggs?", "how many EGGS", True),
        ("He pays 1,000 dollars.", "He pays 1000 dollars", True),
        ("12,345,678 and 2.50", "12345678, and 2.5!", True),
        ("Ann\u2019s \u201cbox\u201d", "Ann's 'box'", True),
        ("It costs 3.0.", "It costs 3", True),
        ("How many eggs?", "How many hens?", False),
        ("How much is 3 - 4?", "How much is 3 + 4?", False),
        ("How much is -7 + 1?", "How much is 7 + 1?", False),
        ("(1 + 2) * 3", "1 + (2 * 3)", False),
        ("1.5 eggs", "15 eggs", False),
        ("0.05 eggs", "0.5 eggs", False),
        ("100 eggs", "1 eggs", False),
        ("1, 2 and 3", "12 and 3", False),
    ],
)
def test_loose_question_ignores_case_punctuation_and_the_spelling_of_numbers(
    a: str, b: str, same: bool
) -> None:
    assert (loose_question(a) == loose_question(b)) is same


@pytest.mark.parametrize("name", ["wordmath", "jsonl", "gsm8k"])
@pytest.mark.parametrize(
    ("section", "values"),
    [
        ({}, (1.0, 0.0, 0.0)),
        ({"answer_format": "tags"}, (1.0, 0.0, 0.0)),
        ({"answer_format": "boxed"}, (0.0, 1.0, 0.0)),
        ({"answer_format": "hash"}, (0.0, 0.0, 1.0)),
    ],
)
def test_number_tasks_pay_for_the_answer_format_of_their_section(
    tmp_path: Path, name: str, section: dict[str, str], values: tuple[float, ...]
) -> None:
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.jsonl", sums(40, 100 * len(split)))
    task = load(name, path=str(tmp_path), **section)
    problem = task.problems("test")[0]
    responses = (f"<answer>{problem.gold}</answer>", f"\\boxed{{{problem.gold}}}", f"#### {problem.gold}")
    assert tuple(reward_value(task, problem, response) for response in responses) == values
