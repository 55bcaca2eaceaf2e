"""Figures, forecast and advice by hand; every option can be pasted."""

import shlex
from dataclasses import replace
from typing import Any

import pytest

from helpers.groups import make_groups
from reinforce_lite.cli.args import parse_train
from reinforce_lite.config import config_differences, load_config
from reinforce_lite.tasks.data_audit import DataAudit
from reinforce_lite.trainer.audit_advice import (
    QuestionCount,
    Sampled,
    count_right,
    expected_live,
    give_advice,
    summarize,
)
from reinforce_lite.trainer.audit_ways import Way

CONFIG = load_config("quickstart")
WAY = Way("the recipe", "tags", CONFIG.prompt)
DATA = DataAudit(200, "<answer>{}</answer>", 1.0, "", {"nothing": 0.0}, 0, True, 0.1)
COUNTS = tuple(QuestionCount(f"p{i}", 4 * (i % 2), 8) for i in range(8))


def sampled(**changes: Any) -> Sampled:
    healthy = Sampled(WAY, 16, 0.4, 0.9, 0.6, (0.4, 0.8), 0.0, 0.0, 20.0, 51, 40, COUNTS)
    return replace(healthy, **changes)


def test_summary_by_hand() -> None:
    found = summarize(WAY, make_groups([[1.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4]))
    assert (found.questions, found.accuracy, found.solved, found.live) == (3, 0.5, 2 / 3, 1 / 3)
    assert found.mean_tokens == (13 + 13 + 8) / 12
    assert found.format_failures == 0
    assert (found.right, found.longest_right) == (6, 4)  # lengths of right ones: 3 and 4; 4, 1, 1, 2
    assert found.counts == (QuestionCount("0", 2, 4), QuestionCount("1", 0, 4), QuestionCount("2", 4, 4))


def test_a_question_that_was_asked_twice_is_counted_once_and_failed_rewards_are_not() -> None:
    first, second, third = make_groups([[1.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4])
    failed = replace(third.rollouts[0], fault="broken")
    third = replace(third, problem=first.problem, rollouts=(failed, *third.rollouts[1:]))
    assert count_right([first, second, third]) == [QuestionCount("0", 5, 7), QuestionCount("1", 0, 4)]


def test_right_numbers_in_another_format_are_counted() -> None:
    group = make_groups([[1.0, 0.0, 0.0, 1.0], [0.0] * 4, [0.0] * 4])[0]
    opinions = (True, True, False, True)
    rollouts = tuple(replace(r, second_opinion=o) for r, o in zip(group.rollouts, opinions, strict=True))
    assert summarize(WAY, [replace(group, rollouts=rollouts)]).format_failures == 1 / 4


def test_completions_whose_reward_failed_do_not_count() -> None:
    group = make_groups([[1.0, 0.0, 0.0, 1.0], [0.0] * 4, [0.0] * 4])[0]
    failed = replace(group.rollouts[1], fault="down")
    rollouts = (group.rollouts[0], failed, *group.rollouts[2:])
    found = summarize(WAY, [replace(group, rollouts=rollouts)])
    assert (found.accuracy, found.format_failures, found.right) == (2 / 3, 0, 2)


def test_a_higher_limit_does_not_help_completions_that_repeat_themselves() -> None:
    group = make_groups([[0.0] * 4, [0.0] * 4, [0.0] * 4])[0]
    cut = [replace(r, completion=replace(r.completion, truncated=True)) for r in group.rollouts[:3]]
    again = replace(cut[0], completion=replace(cut[0].completion, repetitive=True))
    rollouts = (again, *cut[1:], group.rollouts[3])
    assert summarize(WAY, [replace(group, rollouts=rollouts)]).truncated == 2 / 4


@pytest.mark.parametrize(
    ("accuracy", "live", "forecast"),
    [(0.4, 0.6, "likely"), (0.1, 0.15, "slowly"), (0.02, 0.05, "unlikely"), (0.95, 0.3, "nothing left")],
)
def test_forecast(accuracy: float, live: float, forecast: str) -> None:
    assert sampled(accuracy=accuracy, live=live).forecast == forecast


def test_a_good_recipe_gets_no_advice() -> None:
    assert give_advice(CONFIG, DATA, [sampled(), sampled(live=0.65)]) == []


def test_expected_share_of_live_groups_by_hand() -> None:
    """Two questions, 1 of 2 and 0 of 2 right: the mean is (1 + 1) / (4 + 2) = 1/3, so Beta(4/3, 5/3) and
    Beta(1/3, 8/3). Groups of two: 1 - a (a + 1) / 12 - b (b + 1) / 12."""
    one, none = 1 - (4 / 3 * 7 / 3 + 5 / 3 * 8 / 3) / 12, 1 - (1 / 3 * 4 / 3 + 8 / 3 * 11 / 3) / 12
    counts = [QuestionCount("a", 1, 2), QuestionCount("b", 0, 2)]
    assert expected_live(counts, 2) == pytest.approx((one + none) / 2)


RARE = tuple(QuestionCount(f"p{i}", i < 6, 8) for i in range(20))
"""Six of 20 questions have one right completion of 8: 0.24 of groups of 16 are likely to be live, and 0.29 of
groups of 32 (scipy's betabinom)."""
NEVER = tuple(QuestionCount(f"p{i}", 0, 8) for i in range(20))


@pytest.mark.parametrize(
    ("data", "own", "reason", "changed"),
    [
        ({}, {"live": 0.0, "accuracy": 0.0}, "larger model", {}),
        ({}, {"live": 0.0, "accuracy": 0.0, "format_failures": 0.09}, "larger model", {}),
        ({}, {"live": 0.0, "accuracy": 0.0, "format_failures": 0.1}, "10% are right, but not in the", {}),
        ({}, {"live": 0.15, "counts": COUNTS}, "few groups", {"group_size": "16"}),
        ({}, {"live": 0.15, "counts": RARE}, "few groups", {"group_size": "32"}),
        ({}, {"live": 0.15, "counts": NEVER}, "few groups", {"group_size": None}),
        ({}, {"accuracy": 0.97}, "nearly all", {"level": "2"}),
        ({}, {"truncated": 0.3}, "30% are cut", {"max_new_tokens": "128"}),
        ({}, {"truncated": 0.3, "longest_right": 20}, "than 20 tokens", {"max_new_tokens": "32"}),
        ({}, {"truncated": 0.3, "longest_right": 32}, "than 32 tokens", {"max_new_tokens": "48"}),
        ({}, {"truncated": 0.3, "longest_right": 33}, "30% are cut", {"max_new_tokens": "128"}),
        ({}, {"truncated": 0.3, "longest_right": 20, "right": 15}, "30% are cut", {"max_new_tokens": "128"}),
        ({"unearned": {"the constant 3": 0.4}}, {}, "the constant 3 is right for 40%", {}),
    ],
)
def test_advice(
    data: dict[str, Any], own: dict[str, Any], reason: str, changed: dict[str, str | None]
) -> None:
    """What the pasted options change, by the command line's own parser."""
    (advice,) = give_advice(CONFIG, replace(DATA, **data), [sampled(**own)])
    assert reason in advice.reason
    _, config = parse_train(shlex.split(advice.options))
    told = dict(line.split(": ", 1) for line in config_differences(CONFIG, config))
    if "group_size" in changed:
        assert told.pop("rollout.selection") == "'shuffle' -> 'adaptive'"
        assert told.pop("rollout.refill") == "1 -> 2"
    now = {key.partition(".")[2]: value.split(" -> ")[1] for key, value in told.items()}
    assert now == {key: value for key, value in changed.items() if value}


def test_what_a_recipe_does_already_is_not_recommended() -> None:
    few = sampled(live=0.15, counts=NEVER)
    more = {"rollout.selection": "adaptive", "rollout.refill": 4}
    (advice,) = give_advice(load_config("quickstart", more), DATA, [few])
    assert (advice.options, "larger model" in advice.reason) == ("", True)
    (advice,) = give_advice(load_config("quickstart", {"rollout.refill": 4}), DATA, [few])
    assert advice.options == "--rollout.selection adaptive"


def test_an_easier_level_is_recommended_where_nothing_is_right() -> None:
    level3 = load_config("quickstart", {"task.level": 3})
    (advice,) = give_advice(level3, DATA, [sampled(live=0.0, accuracy=0.0)])
    assert advice.options == "--task.level 2"


def test_a_clearly_better_way_to_ask_is_recommended() -> None:
    way = replace(WAY, name="boxed", options="--task.answer-format boxed")
    (advice,) = give_advice(CONFIG, DATA, [sampled(live=0.3), sampled(way=way, live=0.5)])
    assert str(advice) == "ask with another prompt: --task.answer-format boxed"
    unclear = sampled(way=way, live=0.5, live_interval=(0.25, 0.75))
    assert give_advice(CONFIG, DATA, [sampled(live=0.3), unclear]) == []


def test_a_way_that_is_not_recommended_gives_no_advice() -> None:
    assert give_advice(CONFIG, DATA, [sampled(), sampled(live=0.65, truncated=0.5)]) == []


def test_a_nearly_solved_task_is_not_asked_another_way() -> None:
    way = replace(WAY, name="boxed", options="--task.answer-format boxed")
    (advice,) = give_advice(CONFIG, DATA, [sampled(accuracy=0.95, live=0.05), sampled(way=way, live=0.8)])
    assert advice.options == "--task.level 2"
