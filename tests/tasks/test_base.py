"""The reward of number tasks."""

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
