"""Intervals and significance against published and hand-made figures."""

import json
from math import comb
from pathlib import Path

import pytest

from helpers.paths import RECIPE
from helpers.tiny import END, ToyTask, make_tokenizer
from reinforce_lite.config import load_config
from reinforce_lite.engines.scripted import ScriptedEngine
from reinforce_lite.evaluation.evaluate import evaluate_groups
from reinforce_lite.evaluation.statistics import mcnemar_p_value, pass_at_k, wilson_interval
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Sampling, Verdict
from reinforce_lite.utils.seeding import derive_seed


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_table(right: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_stays_within_bounds() -> None:
    assert wilson_interval(20, 20)[1] == pytest.approx(1.0)
    assert wilson_interval(20, 20)[1] <= 1


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_paired_p_by_hand(won: int, lost: int, p: float) -> None:
    before = [False] * won + [True] * lost + [True, False] * 20
    after = [True] * won + [False] * lost + [True, False] * 20
    assert mcnemar_p_value(before, after) == pytest.approx(p)


@pytest.mark.parametrize(
    ("k", "right", "samples", "chance"),
    [
        (1, 3, 8, 3 / 8),
        (2, 3, 8, 1 - 10 / 28),  # C(5, 2) = 10 of C(8, 2) = 28 pairs hold no right answer
        (4, 3, 8, 1 - 5 / 70),  # C(5, 4) = 5 of C(8, 4) = 70
        (8, 3, 8, 1.0),
        (4, 1, 8, 0.5),
        (6, 3, 8, 1.0),  # only 5 are wrong
        (8, 0, 8, 0.0),
        (1, 0, 1, 0.0),
        (100, 10, 200, 1 - comb(190, 100) / comb(200, 100)),
    ],
)
def test_pass_at_k_by_hand(k: int, right: int, samples: int, chance: float) -> None:
    assert pass_at_k(k, right, samples) == pytest.approx(chance)


def test_pass_at_k_is_without_bias() -> None:
    """Over every outcome of 4 answers that are each right with chance 1/3, its mean is 1 - (2/3)^2."""
    expected = sum(comb(4, c) * (1 / 3) ** c * (2 / 3) ** (4 - c) * pass_at_k(2, c, 4) for c in range(5))
    assert expected == pytest.approx(5 / 9)


def group(right: list[bool], second: bool | None = True) -> Group:
    rollouts = [
        Rollout(
            Completion((7, 2), "wait", False, (0.0, 0.0)),
            "t",
            float(ok),
            Verdict(ok, "1", ""),
            None,
            "",
            second,
        )
        for ok in right
    ]
    return Group(Problem("p", "q", "1"), Prompt((1,)), tuple(rollouts))


def test_an_evaluation_of_several_samples_by_hand() -> None:
    found = evaluate_groups(
        [group([True] * 3 + [False] * 5), group([False] * 8), group([True] * 8)], None, "test"
    )
    assert (found.n, found.samples) == (3, 8)
    assert found.strict == pytest.approx(11 / 24)
    assert found.strict_interval == wilson_interval(11 / 8, 3)  # as wide as 3 answers' interval, not 24
    assert found.pass_at == pytest.approx({1: 11 / 24, 2: (1 + 18 / 28) / 3, 4: (1 + 65 / 70) / 3, 8: 2 / 3})
    assert found.pass_at_interval[8] == pytest.approx(wilson_interval(2, 3))
    line = found.line()
    assert line["pass@8"] == pytest.approx(2 / 3)
    assert line["pass@8_interval"] == pytest.approx(wilson_interval(2, 3))
    assert json.loads(json.dumps(line))["reflection/list_c"] == 1.0


def test_pass_at_k_stops_at_the_samples() -> None:
    assert list(evaluate_groups([group([True] * 5)], None, "test").pass_at) == [1, 2, 4]
    assert evaluate_groups([group([True])], None, "test").pass_at == {}


def test_the_second_opinion_is_measured_where_there_is_one() -> None:
    found = evaluate_groups([group([True]), group([True], False), group([True], None)], 3, "validation")
    assert found.second_opinion == 0.5
    assert found.second_opinion_interval == wilson_interval(1, 2)
    assert evaluate_groups([group([True], None)], None, "test").second_opinion is None
    line = found.line()
    assert line["second_opinion"] == 0.5
    assert (line["step"], line["split"], line["n"]) == (3, "validation", 3)
    assert not any("pass" in key for key in line)


def test_one_answer_is_greedy_and_several_are_drawn_as_in_training(model_folder: Path) -> None:
    recipe = RECIPE
    settings = load_config(recipe, {"model.name": str(model_folder), "eval.max_new_tokens": 5})
    pipeline = build_pipeline(settings, ToyTask())
    pipeline.engine = engine = ScriptedEngine(make_tokenizer(), END, lambda prompt, sample: "x")
    problems = pipeline.problems("test", 2)
    assert [len(g.rollouts) for g in pipeline.answer(problems)] == [1, 1]
    assert [len(g.rollouts) for g in pipeline.answer(problems, samples=8)] == [8, 8]
    (_, greedy, seed), (_, drawn, again) = engine.calls
    assert greedy == Sampling(samples=1, max_new_tokens=5, temperature=0.0)
    assert drawn == Sampling(samples=8, max_new_tokens=5, temperature=0.7, top_p=0.9)
    assert seed == again == derive_seed(0, "evaluation")
