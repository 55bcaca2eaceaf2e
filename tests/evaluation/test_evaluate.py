"""The figures of an evaluation, by hand."""

import json
from dataclasses import replace
from typing import Any

import pytest

from helpers.paths import RECIPE
from helpers.tiny import END, ToyTask, make_tokenizer
from reinforce_lite.config import load_config
from reinforce_lite.engines.scripted import ScriptedEngine
from reinforce_lite.evaluation.evaluate import evaluate_groups
from reinforce_lite.evaluation.statistics import wilson_interval
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Sampling, Verdict
from reinforce_lite.utils.seeding import derive_seed


def make_group(correct: list[bool], second_opinion: bool | None = True) -> Group:
    rollouts = [
        Rollout(
            Completion((7, 2), "wait", False, (0.0, 0.0)),
            "t",
            float(ok),
            Verdict(ok, "1", ""),
            None,
            "",
            second_opinion,
        )
        for ok in correct
    ]
    return Group(Problem("p", "q", "1"), Prompt((1,)), tuple(rollouts))


def test_evaluate_groups_of_several_samples_by_hand() -> None:
    evaluation = evaluate_groups(
        [make_group([True] * 3 + [False] * 5), make_group([False] * 8), make_group([True] * 8)], None, "test"
    )
    assert (evaluation.n, evaluation.samples) == (3, 8)
    assert evaluation.strict == pytest.approx(11 / 24)
    assert evaluation.strict_interval == wilson_interval(11 / 8, 3)  # as wide as for 3 rollouts, not 24
    assert evaluation.pass_at == pytest.approx(
        {1: 11 / 24, 2: (1 + 18 / 28) / 3, 4: (1 + 65 / 70) / 3, 8: 2 / 3}
    )
    assert evaluation.pass_at_interval[8] == pytest.approx(wilson_interval(2, 3))
    record = evaluation.to_record()
    assert record["pass@8"] == pytest.approx(2 / 3)
    assert record["pass@8_interval"] == pytest.approx(wilson_interval(2, 3))
    assert json.loads(json.dumps(record))["reflection/list_c"] == 1.0


def test_a_completion_whose_reward_failed_counts_neither_as_right_nor_as_wrong() -> None:
    """One of two samples failed in the first group: 1 of 1, 1 of 2 and 0 of 2 are right."""
    first, second, third = (make_group(correct) for correct in ([True, False], [True, False], [False] * 2))
    failed = replace(first.rollouts[1], fault="timeout", reward=-7.0)
    first = replace(first, rollouts=(first.rollouts[0], failed))
    evaluation = evaluate_groups([first, second, third], None, "test")
    assert (evaluation.strict, evaluation.reward_faults) == (0.5, 1)
    assert evaluation.strict_interval == wilson_interval(1.5, 3)
    assert evaluation.second_opinion == 1.0
    assert evaluation.reward == 2 / 5
    assert evaluation.pass_at == {1: 1 / 4, 2: 1 / 2}  # without the first
    assert evaluation.pass_at_interval[2] == wilson_interval(1, 2)
    assert evaluation.to_record()["reward_faults"] == 1
    assert evaluation.n == 3
    lost = replace(third, rollouts=tuple(replace(r, fault="timeout") for r in third.rollouts))
    without = evaluate_groups([first, second, lost], None, "test")
    assert (without.n, without.strict, without.strict_interval) == (2, 0.75, wilson_interval(1.5, 2))


def test_pass_at_goes_up_to_the_samples() -> None:
    assert list(evaluate_groups([make_group([True] * 5)], None, "test").pass_at) == [1, 2, 4]
    assert evaluate_groups([make_group([True])], None, "test").pass_at == {}


def test_second_opinion_is_averaged_where_there_is_one() -> None:
    evaluation = evaluate_groups(
        [make_group([True]), make_group([True], False), make_group([True], None)], 3, "validation"
    )
    assert evaluation.second_opinion == 0.5
    assert evaluation.second_opinion_interval == wilson_interval(1, 2)
    assert evaluate_groups([make_group([True], None)], None, "test").second_opinion is None
    record = evaluation.to_record()
    assert record["second_opinion"] == 0.5
    assert (record["step"], record["split"], record["n"]) == (3, "validation", 3)
    assert not any("pass" in key for key in record)


def test_evaluation_is_greedy_for_one_sample_and_samples_as_in_training_for_several(
    settings: dict[str, Any],
) -> None:
    config = load_config(RECIPE, settings | {"eval.max_new_tokens": 5, "rollout.min_new_tokens": 2})
    pipeline = build_pipeline(config, ToyTask())
    pipeline.engine = engine = ScriptedEngine(make_tokenizer(), END, lambda prompt, sample: "x")
    problems = pipeline.problems("test", 2)
    assert [len(g.rollouts) for g in pipeline.eval_groups(problems)] == [1, 1]
    assert [len(g.rollouts) for g in pipeline.eval_groups(problems, samples=8)] == [8, 8]
    (_, greedy, greedy_seed), (_, sampled, sampled_seed) = engine.calls
    greedily = Sampling(1, 5, temperature=0.0, stop=("</answer>",), repetition_detection=True)
    assert greedy == greedily
    assert sampled == replace(greedily, samples=8, temperature=0.7, top_p=0.9)
    assert greedy_seed == sampled_seed == derive_seed(0, "evaluation")


@pytest.mark.parametrize(
    ("golds", "expected"),
    [(["1", "2", "1", "3"], 0.5), (["1", "2"], 0.5), (["7"] * 3, 1.0), ([None, "", None], None)],
)
def test_best_constant_is_the_share_of_the_most_frequent_gold(
    golds: list[Any], expected: float | None
) -> None:
    groups = [replace(make_group([False]), problem=Problem(str(i), "q", g)) for i, g in enumerate(golds)]
    assert evaluate_groups(groups, None, "test").best_constant == expected
    assert evaluate_groups(groups, None, "test").to_record()["best_constant"] == expected


def test_the_best_constant_is_of_the_problems_that_were_measured() -> None:
    """Golds 0, 0, 1, 2, 3, of which the reward failed on the last three."""
    groups = [replace(make_group([True]), problem=Problem(str(i), "q", g)) for i, g in enumerate("00123")]
    failed = [replace(g, rollouts=tuple(replace(r, fault="timeout") for r in g.rollouts)) for g in groups[2:]]
    evaluation = evaluate_groups([*groups[:2], *failed], None, "test")
    assert (evaluation.n, evaluation.strict, evaluation.best_constant) == (2, 1.0, 1.0)
