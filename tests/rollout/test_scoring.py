"""Rewards contained: failures made neutral, and a second opinion that warns of a gamed reward."""

import io
import json
import signal
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks.console import LineConsole, LiveConsole
from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.rollout.scoring import Scorer, check_faults, neutralize, second_opinion
from reinforce_lite.runlog.runs import create_run
from reinforce_lite.tasks.base import number_reward
from reinforce_lite.tasks.rewards import RewardFunction
from reinforce_lite.trainer import session
from reinforce_lite.trainer.signals import Interrupted, SignalGuard
from reinforce_lite.types import Completion, Group, Problem, Prompt, Reward, Rollout, Verdict
from reinforce_lite.utils.text import one_line_error


@pytest.mark.parametrize(
    ("gold", "response", "expected"),
    [
        ("72", "so it is 72", True),
        ("72", "<answer>72</answer> or 71", True),
        ("72", "72 or 71", False),
        ("72 eggs", "72", None),  # units are not compared
        ("72", "no idea", False),
        ("tango", "tango", None),
        (72, "so it is 72", True),  # not text, which is no reason to stop
    ],
)
def test_second_opinion_of_a_users_reward_is_the_lenient_verdict(
    gold: Any, response: str, expected: bool | None
) -> None:
    for value in (0.0, 1.0):
        assert second_opinion(Problem("p", "q", gold), response, Reward(value)) is expected


def test_second_opinion_of_a_number_task_is_its_lenient_verdict() -> None:
    problem = Problem("p", "q", "72")
    response = "<think>71</think>the result is 72"
    reward = number_reward(problem, response)
    assert (reward.value, second_opinion(problem, response, reward)) == (0.0, True)
    lenient_wrong = Reward(1.0, Verdict(True, "x", "right"), Verdict(False, "x", "another number"))
    assert second_opinion(problem, response, lenient_wrong) is False


PROBLEM = Problem("p", "q", "1")


def score(result: Any) -> tuple[Reward, str]:
    """What the scorer makes of a reward that returns this."""

    class Returns(ToyTask):
        def reward(self, problem: Problem, completion: str) -> Any:
            return result

    return Scorer(Returns())(PROBLEM, "response")


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (np.True_, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(-2), -2.0),
        (np.array(0.25), 0.25),
        (torch.tensor(0.75), 0.75),
        (torch.tensor(True), 1.0),
        (Reward(np.float32(0.5)), 0.5),  # type: ignore[arg-type]
    ],
)
def test_scalars_of_numpy_and_torch_are_rewards(result: Any, value: float) -> None:
    reward, fault = score(result)
    assert (reward.value, type(reward.value), fault) == (value, float, "")


def test_a_verdict_with_numpys_bool_can_be_written_as_json() -> None:
    right = Verdict(np.True_, "1", "right")  # type: ignore[arg-type]
    reward, fault = score(Reward(1.0, right, right))
    assert reward.strict
    assert reward.lenient
    assert fault == ""
    assert json.dumps([reward.strict.correct, reward.lenient.correct]) == "[true, true]"


@pytest.mark.parametrize(
    "result",
    [
        *("1", None, [1], 1j, np.array([1.0]), torch.tensor([1.0]), np.complex64(1)),
        *(float("nan"), float("inf"), np.float32("nan"), 1.7e308, -1.7e308, 2e30, 10**400),
    ],
)
def test_what_is_no_number_or_has_no_sums_is_a_fault(result: Any) -> None:
    reward, fault = score(result)
    assert reward.value == 0.0
    assert "the reward returned" in fault


@pytest.mark.parametrize("correct", ["no", "", None, [True], 0.5, np.array([True])])
@pytest.mark.parametrize("kind", ["strict", "lenient"])
def test_a_verdict_that_is_neither_true_nor_false_is_a_fault(correct: Any, kind: str) -> None:
    """Any text but an empty one would count as right."""
    verdicts = {"strict": Verdict(True, None, ""), kind: Verdict(correct, None, "")}
    reward, fault = score(Reward(1.0, **verdicts))
    assert reward.value == 0.0
    assert "not True or False" in fault


@pytest.mark.parametrize("verdict", [False, True, 1, "right", {"correct": True}])
@pytest.mark.parametrize("kind", ["strict", "lenient"])
def test_what_is_no_verdict_is_a_fault(verdict: Any, kind: str) -> None:
    """`strict=False` would otherwise leave it to the value whether the response is right."""
    reward, fault = score(Reward(1.0, **{kind: verdict}))
    assert reward.value == 0.0
    assert "not a reinforce_lite.Verdict" in fault


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (0.7 + 0.2 + 0.1, True),
        (sum([0.1] * 10), True),
        (np.float32(0.99999994), True),
        (1.0, True),
        (0.9999, False),
        (0.0, False),
    ],
)
def test_parts_that_add_up_to_one_are_right(value: Any, right: bool) -> None:
    reward, _ = score(value)
    assert reward.strict
    assert (reward.strict.correct, reward.strict.reason == "right") == (right, right)


@pytest.mark.parametrize("returned", [{0: 1.0, 1: 0.0}, {1.0, 0.0}, "10", {"a": 1, "b": 2}.keys()])
def test_rewards_without_an_order_are_refused(returned: Any) -> None:
    reward = RewardFunction(lambda completions: returned)
    with pytest.raises(TypeError, match="not a list of rewards"):
        reward([Problem("a", "q", "1")] * 2, ["x", "y"])


@pytest.mark.parametrize(("correct", "expected"), [(1, True), (0.0, False), (torch.tensor(True), True)])
def test_a_verdict_may_be_a_number_or_a_scalar(correct: Any, expected: bool) -> None:
    reward, fault = score(Reward(1.0, Verdict(correct, None, "")))
    assert not fault
    assert reward.strict
    assert reward.strict.correct is expected


@pytest.mark.case(22)
@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), RecursionError("deep")])
def test_what_an_object_raises_is_contained(error: BaseException) -> None:
    class Raises(ToyTask):
        def reward(self, problem: Problem, completion: str) -> Any:
            raise error

    with SignalGuard().listening():  # as in a run: a Ctrl-C raises Interrupted
        reward, fault = Scorer(Raises())(PROBLEM, "response")
    assert (reward.value, fault) == (0.0, one_line_error(error))


def test_a_signal_and_ctrl_c_are_no_faults_of_an_object() -> None:
    class Raises(ToyTask):
        def reward(self, problem: Problem, completion: str) -> Any:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        with SignalGuard().listening(), pytest.raises(Interrupted):
            Scorer(Raises())(PROBLEM, "response")
        with pytest.raises(KeyboardInterrupt):  # without a guard
            Scorer(Raises())(PROBLEM, "response")
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_objects_reward_may_take_completions_and_be_async() -> None:
    class Batched:
        problems = ToyTask.problems

        async def reward(self, completions: list[str], gold: list[str], **others: Any) -> Any:
            return [float(c == g) / len(others["prompts"]) for c, g in zip(completions, gold, strict=True)]

    assert [Scorer(Batched())(PROBLEM, text)[0].value for text in ("1", "2")] == [1.0, 0.0]  # type: ignore[arg-type]


@pytest.mark.case(11)
def test_rewards_near_the_largest_float_are_refused_before_training() -> None:
    class Huge(ToyTask):
        def reward(self, problem: Problem, completion: str) -> Any:
            return 1.7e308

    with pytest.raises(UsageError, match=r"1\.7e\+308"):
        Scorer(Huge()).probe(PROBLEM)


def make_rollout(reward: float, fault: str = "") -> Rollout:
    completion = Completion((2,), "", False, (0.0,))
    return Rollout(completion, "", reward, Verdict(reward >= 1, None, ""), None, fault)


def test_neutralize_gives_a_failed_reward_the_mean_of_the_others() -> None:
    rollouts = [make_rollout(1.0), make_rollout(0.0, "OSError: gone"), make_rollout(0.5)]
    assert [r.reward for r in neutralize(rollouts)] == [1.0, 0.75, 0.5]
    assert [r.fault for r in neutralize(rollouts)] == ["", "OSError: gone", ""]
    assert [r.reward for r in neutralize([make_rollout(0.0, "fault")] * 2)] == [0.0, 0.0]


UNREWARDED_CALLS = 1 + 10 * 4  # the probe, and 10 steps of 4 completions


class GamedTask(ToyTask):
    """Rewards every training response with 1 from step 11 on, and with 0 before; no response has the gold."""

    def __init__(self, gold: str) -> None:
        self.gold = gold
        self.calls = 0

    def problems(self, split: str) -> list[Problem]:
        return [Problem(p.id, p.question, self.gold) for p in super().problems(split)]

    def reward(self, problem: Problem, completion: str) -> Reward:
        training = problem.id.startswith("train")
        self.calls += training
        return Reward(float(training and self.calls > UNREWARDED_CALLS))


SMALL: dict[str, Any] = {
    "train.steps": 20,
    "train.save_every": 100,
    "rollout.prompts_per_step": 1,
    "rollout.max_new_tokens": 2,
    "eval.n": 2,
    "eval.validation_n": 2,
    "eval.every": 100,
}


@pytest.mark.parametrize("terminal", [True, False])
def test_second_opinion_warns_of_a_gamed_reward_during_a_run(
    terminal: bool, settings: dict[str, Any]
) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=500, height=60, highlight=False)
    callback = LiveConsole(console) if terminal else LineConsole(console)
    task = GamedTask("123456789")
    config = resolve_config(RECIPE, settings | SMALL, task)
    run = session.train(config, create_run("a"), task, callback)
    expected = "warning: over steps 1 to 20 the reward rose from 0.00 to 1.00"
    text = output.getvalue()
    assert expected in text
    if terminal:
        assert f"{'second opinion':>32}  0.00" in text
    else:
        assert text.count(expected) == 1
        assert text.index(expected) > text.index("step 20/20")
        assert text.index(expected) < text.index("step 20: test")
        assert "second opinion 0.0%" in text
        assert "lenient" not in text
    (warning,) = run.summary["warnings"]
    assert f"warning: {warning}".startswith(expected)
    assert "from 0% to 0%" in warning


def test_second_opinion_is_in_every_record(settings: dict[str, Any]) -> None:
    settings |= SMALL | {"train.steps": 1}
    for gold, expected, verdict in (("123456789", 0.0, False), ("tango", None, None)):
        run = api.train(RECIPE, settings, task=GamedTask(gold), run=gold, quiet=True)
        assert run.steps[0]["accuracy/second_opinion"] == expected
        assert run.steps[0]["accuracy/lenient"] is None
        assert {e["second_opinion"] for e in run.evals} == {expected}
        rollouts = [*run.read("rollouts"), *run.read("eval_rollouts")]
        assert {line["second_opinion"] for line in rollouts} == {verdict}
        assert run.summary["evals"]["after"]["second_opinion"] == expected
        assert run.summary["warnings"] == []


def test_a_failed_reward_leaves_a_group_of_equal_rewards_without_signal() -> None:
    """On Python 3.11 the sum of nine times 0.7, divided by nine, is not 0.7."""
    rollouts = neutralize([*[make_rollout(0.7)] * 9, make_rollout(0.0, "fault")])
    assert {r.reward for r in rollouts} == {0.7}


@pytest.mark.parametrize(
    ("calls", "failed", "stops"),
    [(50, 10, False), (50, 11, True), (49, 48, False), (1, 1, True), (4, 4, True), (60, 0, False)],
)
def test_an_evaluation_says_nothing_if_too_many_rewards_failed(calls: int, failed: int, stops: bool) -> None:
    """However many were scored before: a judge may be down for one evaluation."""
    completion, verdict = Completion((1,), "x", False, (0.0,)), Verdict(False, None, "")
    groups = [
        Group(
            Problem(f"p{i}", "q", "1"),
            Prompt((1,)),
            (Rollout(completion, "x", 0.0, verdict, None, "down" if i < failed else ""),),
        )
        for i in range(calls)
    ]
    if stops:
        with pytest.raises(
            ReinforceLiteError, match=f"{failed} of {calls} responses of an evaluation; last: down"
        ):
            check_faults(groups)
    else:
        check_faults(groups)
