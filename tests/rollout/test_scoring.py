"""The verdict that the reward does not pay: which one it is, and that the run says when it does not follow."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks.console import LineConsole, LiveConsole
from reinforce_lite.rollout.scoring import second_opinion
from reinforce_lite.runlog.run import create_run
from reinforce_lite.tasks.base import number_reward
from reinforce_lite.tasks.grading import is_number
from reinforce_lite.trainer import trainer
from reinforce_lite.types import Problem, Reward, Verdict


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("72", True),
        (" -7 ", True),
        ("1,234", True),
        ("1/2", True),
        ("$0.50", True),
        ("72 eggs", False),
        ("A2", False),
        ("1,23", False),  # no number that can be read
        ("3 or 4", False),
        ("[72]", False),
        ("٧٢", False),
        ("1e999999999", False),
        ("", False),
    ],
)
def test_what_a_number_is(text: str, yes: bool) -> None:
    assert is_number(text) == yes


@pytest.mark.parametrize(
    ("gold", "turn", "expected"),
    [
        ("72", "so it is 72", True),
        ("72", "<answer>72</answer> or 71", False),
        ("72", "no idea", False),
        ("tango", "tango", None),
        (72, "so it is 72", True),  # not text, but nothing to stop for
    ],
)
def test_a_users_reward_is_checked_by_the_last_number(gold: Any, turn: str, expected: bool | None) -> None:
    """Whatever it paid."""
    for paid in (0.0, 1.0):
        assert second_opinion(Problem("p", "q", gold), turn, Reward(paid)) is expected


def test_a_number_tasks_second_opinion_is_its_lenient_verdict() -> None:
    problem = Problem("p", "q", "72")
    turn = "<think>71</think>the result is 72"
    reward = number_reward(problem, turn)
    assert (reward.value, second_opinion(problem, turn, reward)) == (0.0, True)
    own = Reward(1.0, Verdict(True, "x", "right"), Verdict(False, "x", "another number"))
    assert second_opinion(problem, turn, own) is False


class Pays(ToyTask):
    """Pays 1 from step 11 on (a probe, then 4 answers a step), whatever is answered; golds are numbers that no answer gives."""

    def __init__(self, gold: str) -> None:
        self.gold = gold
        self.calls = 0

    def problems(self, split: str) -> list[Problem]:
        return [Problem(p.id, p.question, self.gold) for p in super().problems(split)]

    def reward(self, problem: Problem, completion: str) -> Reward:
        self.calls += problem.id.startswith("train")
        return Reward(float(self.calls > 1 + 10 * 4 and problem.id.startswith("train")))


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
def test_a_gamed_reward_is_said_during_the_run_and_at_its_end(
    terminal: bool, model_folder: Path, in_tmp: Path
) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=500, height=60, highlight=False)
    show = LiveConsole(console) if terminal else LineConsole(console)
    task = Pays("123456789")
    settings = resolve_config(RECIPE, SMALL | {"model.name": str(model_folder)}, task)
    run = trainer.train(settings, create_run("a"), task, show)
    said = (
        "warning: over steps 1 to 20 the reward rose from 0.00 to 1.00, but accuracy by a second opinion, which "
        "is not paid, went from 0% to 0%: "
    )
    text = out.getvalue()
    assert text.count(said) >= 2
    if terminal:
        assert f"{'second opinion':>24}  0.00" in text
    else:
        assert text.count(said) == 2
        assert text.index(said) > text.index("step 20/20")
        assert text.index(said) < text.index("step 20: test")
        assert "second opinion 0.0%" in text
        assert "lenient" not in text
    (warning,) = run.summary["warnings"]
    assert f"warning: {warning}".startswith(said)


def test_every_line_has_it(model_folder: Path, in_tmp: Path) -> None:
    for gold, expected, verdict in (("123456789", 0.0, False), ("tango", None, None)):
        settings = SMALL | {"train.steps": 1, "model.name": str(model_folder)}
        run = api.train(RECIPE, settings, task=Pays(gold), run=gold, quiet=True)
        assert run.steps[0]["accuracy/second_opinion"] == expected
        assert run.steps[0]["accuracy/lenient"] is None
        assert {e["second_opinion"] for e in run.evals} == {expected}
        rollouts = [*run.read("rollouts"), *run.read("eval_rollouts")]
        assert {line["second_opinion"] for line in rollouts} == {verdict}
        assert run.summary["evals"]["after"]["second_opinion"] == expected
        assert run.summary["warnings"] == []
