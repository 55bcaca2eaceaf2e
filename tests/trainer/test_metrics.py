"""Step metrics at their edges."""

import math
from dataclasses import replace

import pytest

from helpers.groups import make_groups
from reinforce_lite.learner.updater import GradientStats
from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.trainer.metrics import difficulty, step_metrics
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Verdict

SECONDS = {"rollout": 1.0, "reward": 1.0, "update": 1.0}


def metrics(groups: list[Group], gradient: GradientStats | None = None) -> StepMetrics:
    state = ("learning_rate", "num_tokens", "step_time", "peak_memory", "micro_batch_tokens", "max_num_seqs")
    found = gradient or GradientStats(0.0, 0.0, 0)
    return step_metrics(1, groups, found, False, True, SECONDS, **dict.fromkeys(state, 0))


def every(completion: Completion) -> list[Group]:
    """Groups of nothing but this completion."""
    groups = make_groups([[0.0] * 4] * 3)
    return [replace(g, rollouts=tuple(replace(r, completion=completion) for r in g.rollouts)) for g in groups]


@pytest.mark.case(15)
@pytest.mark.parametrize(
    ("completion", "length", "clipped"),
    [
        (Completion((2,), "", False, (-0.5,)), 1.0, 0.0),
        (Completion((7,) * 64, "a" * 64, True, (-0.5,) * 64, repetitive=True), 64.0, 1.0),
    ],
)
def test_a_step_whose_completions_all_end_at_once_or_never(
    completion: Completion, length: float, clipped: float
) -> None:
    step = metrics(every(completion))
    assert (step.mean_length, step.clipped_ratio, step.entropy) == (length, clipped, 0.5)
    assert step.repetition_ratio == clipped
    assert (step.reward_std, step.no_signal_ratio, step.not_finite) == (0.0, 1.0, None)


@pytest.mark.case(10)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_and_has_no_number(bad: float) -> None:
    by_loss = metrics(make_groups(), GradientStats(bad, 1.0, 9))
    assert (by_loss.not_finite, by_loss.loss, by_loss.grad_norm) == ("gradient", None, 1.0)
    by_norm = metrics(make_groups(), GradientStats(1.0, bad, 9))
    assert (by_norm.not_finite, by_norm.loss, by_norm.grad_norm) == ("gradient", 1.0, None)
    by_entropy = metrics(every(Completion((7, 2), "a", False, (-0.5, bad))))
    assert (by_entropy.not_finite, by_entropy.entropy) == ("log-probabilities", None)


@pytest.mark.case(11)
def test_the_largest_rewards_have_sums() -> None:
    step = metrics(make_groups([[1e30] * 4, [-1e30, 1e30, 0.0, 1e30], [1e30] * 4]))
    assert step.reward == pytest.approx(9e30 / 12)
    assert math.isfinite(step.reward_std)
    assert step.no_signal_ratio == pytest.approx(2 / 3)


def test_difficulty_by_hand() -> None:
    """Of four completions each: 0, 1, 2, then 4, 3 and 0 are right."""
    harder = make_groups([[float(i < right) for i in range(4)] for right in (0, 1, 2)])
    assert difficulty(harder) == [1 / 3, 1 / 3, 1 / 3, 0, 0]
    easier = make_groups([[float(i < right) for i in range(4)] for right in (4, 3, 0)])
    assert difficulty(easier) == [1 / 3, 0, 0, 1 / 3, 1 / 3]
    step = metrics(easier)
    assert (step.questions_asked, step.live_groups) == (3, 1)
    assert (step.none_right, step.few_right, step.some_right) == (1 / 3, 0, 0)
    assert (step.most_right, step.all_right) == (1 / 3, 1 / 3)


def with_faults(group: Group, failed: set[int]) -> Group:
    return replace(
        group,
        rollouts=tuple(replace(r, fault="no") if i in failed else r for i, r in enumerate(group.rollouts)),
    )


def test_groups_whose_rewards_all_failed_do_not_count_in_rewards() -> None:
    """The last group has no reward: 0 stands in its place. Standard deviation of -1, -1, -3, -3: 2 / sqrt(3)."""
    groups = make_groups([[-1.0] * 4, [-1.0, -1.0, -3.0, -3.0], [0.0] * 4])
    step = metrics([*groups[:2], with_faults(groups[2], {0, 1, 2, 3})])
    assert step.reward == -1.5
    assert step.reward_std == pytest.approx(1 / math.sqrt(3))
    assert (step.no_signal_ratio, step.live_groups, step.reward_faults) == (2 / 3, 1, 4)
    nothing = metrics([with_faults(g, {0, 1, 2, 3}) for g in groups])
    assert (nothing.reward, nothing.reward_std, nothing.no_signal_ratio) == (0.0, 0.0, 1.0)


def answering(answers: list[list[str | None]], golds: list[str]) -> list[Group]:
    """A group for each question, whose completions gave these answers."""
    completion = Completion((2,), "", False, (-0.5,))
    return [
        Group(
            Problem(gold, "", gold),
            Prompt((1,)),
            tuple(Rollout(completion, "", 0.0, Verdict(a == gold, a, ""), None) for a in row),
        )
        for row, gold in zip(answers, golds, strict=True)
    ]


def test_most_frequent_answer_by_hand() -> None:
    """1 is given by five of eight, in three spellings, and right for two of these five."""
    answers: list[list[str | None]] = [["1", "1"], ["1.0", "2"], ["1 egg", None], ["1", "4"]]
    step = metrics(answering(answers, ["1", "2", "3", "4"]))
    assert (step.same_answer, step.same_answer_right) == (5 / 8, 2 / 5)


def test_most_frequent_answer_without_completions_whose_reward_failed() -> None:
    groups = answering([["1", "2"], ["1", "2"], ["1", "1"], ["1", "1"]], ["1", "1", "2", "2"])
    step = metrics([with_faults(groups[0], {1}), with_faults(groups[1], {1}), *groups[2:]])
    assert (step.same_answer, step.same_answer_right) == (1.0, 2 / 6)


@pytest.mark.parametrize("answers", [[["1", "1"]] * 3, [[None, ""]] * 4], ids=["few questions", "no answers"])
def test_no_most_frequent_answer(answers: list[list[str | None]]) -> None:
    step = metrics(answering(answers, ["1"] * len(answers)))
    assert (step.same_answer, step.same_answer_right) == (None, None)
