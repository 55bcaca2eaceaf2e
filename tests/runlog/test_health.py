"""Warnings on metrics worked out by hand."""

from typing import Any

import pytest

from reinforce_lite.runlog.health import (
    WINDOW,
    compare,
    find_warnings,
    first_to_last_quarter,
    non_finite_streak,
    sampler_gap_warning,
)
from reinforce_lite.runlog.records import StepMetrics


def steps(reward: list[float], second: list[float] | None = None, **other: list[Any]) -> list[StepMetrics]:
    """Step metrics, numbered from 1; the second opinion is None when it is not given."""
    return [
        StepMetrics.from_record(
            {
                "step": i + 1,
                "reward": value,
                "accuracy/second_opinion": second[i] if second else None,
                "accuracy/strict": other.get("strict", [0.5] * len(reward))[i],
                "questions_asked": other["asked"][i] if "asked" in other else None,
                "frac_reward_zero_std": other.get("no_signal", [0.5] * len(reward))[i],
                "completions/clipped_ratio": other.get("clipped", [0.0] * len(reward))[i],
                "completions/repetition_ratio": other["again"][i] if "again" in other else None,
                "answers/most_frequent": other["same"][i] if "same" in other else None,
                "answers/most_frequent_right": other["same_right"][i] if "same" in other else None,
                "entropy": other.get("entropy", [0.2] * len(reward))[i],
                "warm_start": other.get("warm_start", [None] * len(reward))[i],
                "not_finite": other["bad"][i] if "bad" in other else None,
            }
        )
        for i, value in enumerate(reward)
    ]


def around(middle: float, n: int, swing: float = 0.1) -> list[float]:
    """n values, by turns one `swing` below and above."""
    return [middle - swing if i % 2 == 0 else middle + swing for i in range(n)]


def test_compare_by_hand() -> None:
    # 10 values around 0.2, each 0.1 off: variance 10 * 0.01 / 9 = 0.0111; noise sqrt(2 * 0.0111 / 10) = 0.04714
    change = compare(around(0.2, 10), around(0.6, 10))
    assert (change.before, change.after, change.rise) == pytest.approx((0.2, 0.6, 0.4))
    assert change.noise == pytest.approx(0.047140, abs=1e-6)


# The noise of both is 0.04714: a rise is clear above 2.9 * 0.04714 = 0.13671, and up to 0.04714 it is none.
@pytest.mark.parametrize(
    ("reward", "second", "warns"),
    [
        (0.4, 0.0, True),
        (0.4, -0.3, True),
        (0.137, 0.0, True),
        (0.136, 0.0, False),  # could be noise
        (0.0, 0.0, False),
        (-0.4, -0.4, False),
        (0.4, 0.047, True),
        (0.4, 0.048, False),  # it rose a little too
        (0.4, 0.4, False),
    ],
)
def test_second_opinion_warning_when_only_the_reward_rises(reward: float, second: float, warns: bool) -> None:
    run = steps(
        around(0.2, 10) + around(0.2 + reward, 10),
        around(0.4, 10) + around(0.4 + second, 10),
    )
    assert ("second_opinion" in find_warnings(run)) == warns


def test_second_opinion_warning_names_steps_and_figures() -> None:
    run = steps(around(0.2, 10) + around(0.6, 10), around(0.3, 20))
    text = find_warnings(run)["second_opinion"]
    for figure in ("steps 1 to 20", "from 0.20 to 0.60", "from 30% to 30%"):
        assert figure in text


def test_warm_start_is_not_without_signal() -> None:
    """Its steps do not count; ten of the recipe's do."""
    lost: dict[str, list[Any]] = {"strict": [0.02] * 30, "no_signal": [0.9] * 30}
    assert "in 30 steps 90%" in find_warnings(steps([0.02] * 30, None, **lost))["no_signal"]
    warm = lost | {"warm_start": [True] * 20 + [False] * 10}
    assert "in 10 steps 90%" in find_warnings(steps([0.02] * 30, None, **warm))["no_signal"]
    assert find_warnings(steps([0.02] * 29, None, **warm)) == {}


def test_a_short_run_and_a_task_without_a_second_opinion_say_nothing() -> None:
    assert find_warnings([]) == {}
    assert find_warnings(steps([0.0] * 9 + [1.0] * 10, [0.5] * 19)) == {}
    assert find_warnings(steps([0.0] * 10 + [1.0] * 10)) == {}
    assert find_warnings(steps([0.5] * 30)) == {}


def test_second_opinion_warning_looks_at_the_second_half_too() -> None:
    """Both rose for 40 steps; in the second half only the reward continues to rise."""
    reward = around(0.1, 20) + around(0.5, 30) + around(0.9, 30)
    second = around(0.1, 20) + around(0.5, 60)
    over_all = first_to_last_quarter(second)
    assert over_all.rise > 2.9 * over_all.noise
    text = find_warnings(steps(reward, second))["second_opinion"]
    assert "steps 41 to 80" in text
    assert "from 0.50 to 0.90" in text


def test_first_to_last_quarter_of_a_long_run() -> None:
    """100 steps: 25 against 25, so steps 11 to 25 count in the first window."""
    assert first_to_last_quarter([0.0] * 10 + [1.0] * 15 + [0.5] * 75).before == pytest.approx(0.6)


@pytest.mark.case(14)
@pytest.mark.parametrize(
    ("rewards", "warns"),
    [
        (around(0.5, 20) + around(0.24, 10), True),  # below half of 0.5
        (around(0.5, 20) + around(0.26, 10), False),
        (around(0.1, 5) + around(0.7, 10) + around(0.2, 15), True),  # it had risen first
        (
            around(0.06, 10, 0.05) + around(0.02, 10, 0.02),
            False,
        ),  # below half, but within the noise: 0.04 < 0.052
        ([-0.2] * 20 + [-0.9] * 9 + [-1.0], True),  # counted from -1: 0.8 to 0.09
        ([-0.2] * 20 + [-0.5] * 9 + [-1.0], False),  # counted from -1: 0.8 to 0.45
        ([-0.2] * 20 + [-0.5] * 10, True),  # counted from -0.5: 0.3 to 0
        ([0.0] * 30, False),
        ([1.0] * 10 + [0.0] * 9, False),  # too short
        (around(0.2, 10) + around(0.6, 10), False),
    ],
)
def test_reward_collapse(rewards: list[float], warns: bool) -> None:
    assert ("reward" in find_warnings(steps(rewards))) == warns


def test_reward_warning_names_the_best_window() -> None:
    text = find_warnings(steps([0.1] * 5 + [0.7] * 10 + [0.1] * 10))["reward"]
    for figure in ("0.70 over steps 6 to 15", f"0.10 over the last {WINDOW}"):
        assert figure in text


@pytest.mark.case(14)
@pytest.mark.parametrize(
    ("entropy", "strict", "warns"),
    [
        ([0.2] * 10 + [0.019] * 10, 0.5, True),
        ([0.2] * 10 + [0.021] * 10, 0.5, False),
        ([0.2] * 10 + [0.001] * 10, 0.89, True),
        ([0.2] * 10 + [0.001] * 10, 0.91, False),  # sure, and right
        ([0.0] * 20, 0.5, False),
        ([0.2] * 10 + [0.001] * 9, 0.5, False),
    ],
)
def test_entropy_collapse(entropy: list[float], strict: float, warns: bool) -> None:
    n = len(entropy)
    assert ("entropy" in find_warnings(steps([0.5] * n, entropy=entropy, strict=[strict] * n))) == warns


@pytest.mark.parametrize(
    ("entropy", "reward", "warns"),
    [
        ([0.1] * 10 + [0.131] * 10, [0.3] * 20, True),
        ([0.1] * 10 + [0.129] * 10, [0.3] * 20, False),
        ([0.1] * 10 + [0.3] * 9, [0.3] * 19, False),  # too short
        ([0.1] * 10 + [0.3] * 10, [0.3] * 10 + [0.4] * 10, False),  # it learns
        ([0.1] * 10 + [0.3] * 10, [0.3] * 10 + [0.2] * 10, True),
        ([0.1] * 10 + [None] * 5 + [0.3] * 10, [0.3] * 25, True),
        ([0.1] * 19 + [2.0], [0.3] * 20, False),  # one step: 0.29 on average, with a noise of 0.19
        ([0.0] * 20, [0.3] * 20, False),
    ],
)
def test_growing_entropy(entropy: list[float | None], reward: list[float], warns: bool) -> None:
    warnings = find_warnings(steps(reward, entropy=entropy))
    assert ("growing_entropy" in warnings) == warns


def test_growing_entropy_names_figures_and_leaves_out_a_warm_start() -> None:
    reward, entropy = [0.3] * 10 + [0.25] * 10, [0.1] * 10 + [0.25] * 10
    text = find_warnings(steps(reward, entropy=entropy))["growing_entropy"]
    assert "from 0.100 nats" in text
    assert "to 0.250 over" in text
    assert "from 0.30 to 0.25" in text
    assert "update.learning_rate" in text
    warm = steps(reward, entropy=entropy, warm_start=[True] * 10 + [False] * 10)
    assert "growing_entropy" not in find_warnings(warm)
    solved = steps([0.98] * 20, entropy=entropy, strict=[0.98] * 20)
    assert "growing_entropy" not in find_warnings(solved)  # the reward can't rise


@pytest.mark.parametrize(
    ("no_signal", "strict", "warns"),
    [
        ([0.7] * 5 + [0.8] * 5, [0.0] * 10, True),  # 0.75
        ([0.7] * 5 + [0.78] * 5, [0.0] * 10, False),
        ([1.0] * 10, [0.09] * 10, True),
        ([1.0] * 10, [0.11] * 10, False),  # a few questions are easy, and others may follow
        ([1.0] * 9, [0.0] * 9, False),  # too short
        ([1.0] * 10 + [0.4] * 10, [0.0] * 20, False),  # it was
        ([0.5] * 10 + [1.0] * 10, [0.5] * 10 + [0.0] * 10, False),  # it learned once: a collapse
    ],
)
def test_no_signal_warning_thresholds(no_signal: list[float], strict: list[float], warns: bool) -> None:
    assert ("no_signal" in find_warnings(steps(strict, no_signal=no_signal, strict=strict))) == warns


def test_with_refill_groups_are_counted_not_steps() -> None:
    """By turns 23 of 24 groups and 4 of 8 have no signal: 84% of the groups, 73% in the mean of steps."""
    silent, asked = [23 / 24, 4 / 8] * 10, [24, 8] * 10
    found = find_warnings(steps([0.05] * 20, no_signal=silent, strict=[0.05] * 20, asked=asked))
    assert "in 20 steps 84% of the groups" in found["no_signal"]


@pytest.mark.parametrize(
    ("second", "clipped", "advice"),
    [
        (0.0, 0.4, "larger model"),
        (0.09, 0.4, "larger model"),
        (None, 0.4, "larger model"),
        (0.3, 0.4, "30% have the right number"),
        (0.3, 0.6, "rollout.max_new_tokens"),
    ],
)
def test_no_signal_warning_advises_by_what_is_seen(second: float | None, clipped: float, advice: str) -> None:
    few, opinions = [0.02] * 10, None if second is None else [second] * 10
    text = find_warnings(steps(few, opinions, strict=few, no_signal=[0.9] * 10, clipped=[clipped] * 10))[
        "no_signal"
    ]
    for figure in ("in 10 steps", "90% of the groups", "2% of the completions", advice):
        assert figure in text
    assert ("prompt.examples" in text) == ("right number" in advice)


@pytest.mark.parametrize(
    ("clipped", "again", "advice"),
    [
        (0.6, 0.5, "most completions repeat themselves"),
        (0.6, 0.4, "larger model"),  # neither is most
        (0.9, 0.4, "rollout.max_new_tokens"),
    ],
)
def test_no_signal_warning_tells_repetitions_from_the_limit(
    clipped: float, again: float, advice: str
) -> None:
    few = [0.02] * 10
    seen = steps(few, strict=few, no_signal=[0.9] * 10, clipped=[clipped] * 10, again=[again] * 10)
    text = find_warnings(seen)["no_signal"]
    assert advice in text
    assert ("repeat" in text) == ("repeat" in advice)


HOPELESS: dict[str, list[Any]] = {"no_signal": [1.0] * 20, "strict": [0.0] * 20, "clipped": [1.0] * 20}


@pytest.mark.case(10)
@pytest.mark.parametrize(
    ("bad", "kinds", "words"),
    [
        ([None] * 20, ["no_signal"], ["max_new_tokens"]),
        (["gradient"] + [None] * 19, ["not_finite", "no_signal"], ["gradient not finite in 1 of 20 steps"]),
        (["gradient"] * 2 + [None] * 18, ["not_finite"], ["in 2 of 20 steps", "update.learning_rate"]),
        ([None] * 19 + ["weights"], ["not_finite"], ["weights not finite in 1 of 20"]),
        (
            [None] * 17 + ["gradient", "log-probabilities", "gradient"],
            ["not_finite"],
            ["gradient or log-probabilities not finite in 3 of 20 steps"],
        ),
    ],
)
def test_what_is_not_finite_comes_first_and_silences_the_rest(
    bad: list[Any], kinds: list[str], words: list[str]
) -> None:
    warnings = find_warnings(steps([0.0] * 20, bad=bad, **HOPELESS))
    assert list(warnings) == kinds
    assert all(word in warnings[kinds[0]] for word in words)


def test_the_streak_is_that_of_the_last_steps() -> None:
    assert non_finite_streak([]) == 0
    assert non_finite_streak(steps([0.0] * 4, bad=["gradient", None, "weights", "gradient"])) == 2
    assert non_finite_streak(steps([0.0] * 2, bad=["gradient", None])) == 0


def test_unknown_entropy_is_left_out() -> None:
    entropy = [0.2] * 10 + [None] * 3 + [0.01] * 10
    assert "entropy" in find_warnings(steps([0.5] * 23, entropy=entropy, bad=[None] * 23))
    assert find_warnings(steps([0.5] * 20, entropy=[None] * 20)) == {}


@pytest.mark.case(14)
@pytest.mark.parametrize(
    ("entropy", "advice"),
    [
        ([0.2] + [10.8] * 19, "learning_rate"),  # all tokens alike
        ([0.2] + [0.0] * 19, "learning_rate"),  # one token for ever
        ([0.222, 0.241, 0.45, 0.558, 0.629, 0.678, 0.602, 0.674, 0.666, 0.826], "learning_rate"),
        ([0.2] + [0.41] * 19, "learning_rate"),
        ([0.2] + [0.39] * 19, "max_new_tokens"),
        ([0.2] + [0.1] * 19, "max_new_tokens"),
        ([None] + [0.1] * 19, "max_new_tokens"),
    ],
)
def test_a_model_that_updates_broke_is_not_advised_to_write_more(entropy: list[Any], advice: str) -> None:
    text = find_warnings(steps([0.0] * len(entropy), entropy=entropy, **HOPELESS))["no_signal"]
    assert advice in text


def gaps(*values: float | None) -> str:
    lines = [StepMetrics.from_record({"step": i, "logprob_gap/mean": gap}) for i, gap in enumerate(values, 1)]
    return sampler_gap_warning(lines)


@pytest.mark.parametrize(
    ("values", "warns"),
    [
        ((0.06, 0.07, 0.06), True),  # more than bfloat16 rounds
        ((0.04, 0.049, 0.048), False),
        ((0.01, 0.02, 0.031, 0.04, 0.032), True),  # three times the first step's
        ((0.01, 0.02, 0.031, 0.029, 0.032), False),  # not in each of the last three
        ((0.01, 0.04, 0.04), False),
        ((1e-6, 9e-4, 9e-4, 9e-4), False),  # float32: within its bound
        ((1e-6, 2e-3, 2e-3, 2e-3), True),
        ((0.01, 0.04, None, 0.04, 0.04), True),  # a step without tokens to learn from is left out
        ((None, None, 0.2), False),
    ],
)
def test_sampler_gap_warning_thresholds(values: tuple[float | None, ...], warns: bool) -> None:
    assert bool(gaps(*values)) is warns


def test_sampler_gap_warning_names_figures_and_what_to_try() -> None:
    text = gaps(0.02, 0.07, 0.064, 0.08)
    assert "at least 0.064 nats per token in the last 3 steps (0.02 in the first)" in text
    assert "--model.dtype float32" in text
    assert "engine_correction" in text


@pytest.mark.parametrize(
    ("same", "right", "warns"),
    [
        ([0.9] * 10, [0.42] * 10, True),
        ([0.0] * 5 + [1.0] * 10, [1.0] * 5 + [0.9] * 10, True),
        ([0.89] * 10, [0.42] * 10, False),  # others answer otherwise
        ([0.9] * 10, [0.83] * 10, False),  # the answer is right about as often as it is given
        ([0.9] * 9, [0.42] * 9, False),  # too few steps
        ([None, *[0.9] * 9], [None, *[0.42] * 9], False),  # of too few questions
        ([*[0.9] * 10, None], [*[0.42] * 10, None], False),  # it gives no answer any more
    ],
)
def test_one_answer_to_every_question(
    same: list[float | None], right: list[float | None], warns: bool
) -> None:
    warnings = find_warnings(steps([0.4] * len(same), same=same, same_right=right))
    assert ("same_answer" in warnings) == warns


def test_one_answer_names_both_shares() -> None:
    text = find_warnings(steps([0.4] * 12, same=[0.1] * 2 + [0.95] * 10, same_right=[0.42] * 12))[
        "same_answer"
    ]
    assert "95% of the completions" in text
    assert "right in 42%" in text
