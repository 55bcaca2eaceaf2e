"""Rewards that are right, and rewards that pay for nothing."""

from collections.abc import Callable, Sequence

import pytest

from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.tasks.base import number_reward
from reinforce_lite.tasks.data_audit import DataAudit, audit_data
from reinforce_lite.types import AnswerFormat, Problem, Reward

PROBLEMS = [Problem(f"p{i}", f"What is {i} + 1?", gold) for i, gold in enumerate(["1", "7", "7", "1000"])]


class Rewarded:
    def __init__(self, reward: Callable[[Problem, str], float | Reward]) -> None:
        self.reward = reward

    def problems(self, split: str) -> Sequence[Problem]:
        return PROBLEMS


def audited(
    reward: Callable[[Problem, str], float | Reward], formats: Sequence[AnswerFormat] = ("tags",)
) -> DataAudit:
    return audit_data(PROBLEMS, Scorer(Rewarded(reward)).score, formats)


@pytest.mark.parametrize("answer_format", ["tags", "boxed", "hash"])
def test_a_reward_that_is_right(answer_format: AnswerFormat) -> None:
    found = audited(lambda p, text: number_reward(p, text, answer_format), [answer_format])
    assert (found.problems, found.golds_paid, found.unpaid, found.faults) == (4, 1, "", 0)
    assert found.easiest == ("the constant 7", 0.5)  # the most common gold, of two of four problems
    # p1's gold is also the next problem's: it would be right, so it is not given.
    assert found.unearned["another problem's gold"] == 0
    assert found.unearned["all numbers to 100"] == found.unearned["nothing"] == 0
    assert found.reason_broken == ""


def test_golds_that_the_reward_does_not_accept() -> None:
    found = audited(lambda p, text: number_reward(p, text, "boxed"), ["tags"])
    assert found.golds_paid == 0
    assert found.unpaid.startswith("p0, gold '1': no ")
    assert "0% of the problems" in found.reason_broken


def test_a_reward_of_the_users_own_may_read_any_format() -> None:
    found = audited(lambda p, text: float(text == f"#### {p.gold}"), ["tags", "boxed", "hash"])
    assert (found.written, found.golds_paid) == ("#### {}", 1)


def test_a_reward_of_the_users_own_may_want_something_else_than_the_gold() -> None:
    found = audited(lambda p, text: float("def solve" in text), ["tags", "boxed", "hash"])
    assert found.golds_paid == 0
    assert found.reason_broken == ""


@pytest.mark.parametrize(
    ("reward", "what"),
    [
        (lambda p, text: float(p.gold in text), "all numbers to 100"),
        (lambda p, text: 1.0, "the constant 7"),
        (lambda p, text: float(text.strip() == ""), "nothing"),
    ],
)
def test_a_reward_for_nothing_is_told(reward: Callable[[Problem, str], float], what: str) -> None:
    found = audited(reward, ["tags", "boxed", "hash"])
    assert found.easiest[0] == what
    assert found.easiest[1] >= 0.75  # 1000 is not among the numbers to 100


def test_a_reward_that_pays_for_everything_is_broken() -> None:
    assert "100%" in audited(lambda p, text: 1.0).reason_broken


def test_calls_that_fail_are_counted() -> None:
    def reward(problem: Problem, text: str) -> float:
        if not text:
            raise ValueError
        return float(text == f"<answer>{problem.gold}</answer>")

    assert audited(reward).faults == 4  # of "nothing", for each problem
