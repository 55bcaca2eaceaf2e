"""The reward of number tasks."""

from pathlib import Path

import pytest

from helpers.tasks import load, reward_value, sums, write_rows
from reinforce_lite.tasks.base import NumberTask
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
