"""Weights, gradients and log-probabilities that are not finite: undone, counted, and in the end a stop."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.cli.app import main
from reinforce_lite.errors import NotFiniteError
from reinforce_lite.learner.updater import GradientStats, Updater
from reinforce_lite.runlog.diagnosis import diagnose
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.checkpoint import checkpoint_steps, latest_checkpoint

pytestmark = pytest.mark.case(10)
TIMES = ("time/", "tokens_per_second/", "step_time", "memory/", "seconds")


TASK = """
from reinforce_lite import Problem

def problems(split):
    return [Problem(f"{split}-{n}", f"{split} question {n}?", str(n)) for n in range(12)]

def reward(problem, completion):
    return float(sum(map(ord, completion)) % 3 == 0)
"""


def train(settings: dict[str, Any], name: str, **kwargs: Any) -> Run:
    return api.train(RECIPE, settings, task=ToyTask(), run=name, quiet=True, **kwargs)


def strict_json(text: str) -> Any:
    """Refuses NaN and Infinity, which Python's own reader accepts."""

    def refuse(constant: str) -> Any:
        pytest.fail(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def logs(run: Run) -> list[list[dict[str, Any]]]:
    names = ("steps", "rollouts", "evals", "eval_rollouts")
    return [[{k: v for k, v in r.items() if not k.startswith(TIMES)} for r in run.read(n)] for n in names]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def break_gradients(
    patch: pytest.MonkeyPatch, broken: Callable[[int], bool], value: float = math.nan
) -> None:
    """Make the gradient of the nth update, counted over the whole process, NaN where `broken(n)`."""
    real, calls = Updater.compute_gradient, 0

    def compute(self: Updater, *args: Any) -> GradientStats:
        nonlocal calls
        calls += 1
        stats = real(self, *args)
        if broken(calls):
            for gradient in self._gradients():
                gradient.fill_(value)
            return replace(stats, norm=self._gradient_norm() if stats.tokens else value)
        return stats

    patch.setattr(Updater, "compute_gradient", compute)


def break_weights(patch: pytest.MonkeyPatch, broken: Callable[[int], bool]) -> None:
    """Let the nth update of the process leave one infinite weight where `broken(n)`."""
    real, calls = Updater.apply_gradient, 0

    def apply(self: Updater, *args: Any) -> bool:
        nonlocal calls
        calls += 1
        moved = real(self, *args)
        if moved and broken(calls):
            list(self.master_weights.values())[-1].data.view(-1)[-1] = -math.inf
            self.sync_policy()
        return moved

    patch.setattr(Updater, "apply_gradient", apply)


@pytest.mark.parametrize("first", [1, 5])
def test_a_passing_fault_of_three_gradients_leaves_no_trace(
    settings: dict[str, Any], first: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the first checkpoint and after it: the run goes back and takes the same steps as one without."""
    straight = train(settings, "straight")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        break_gradients(patch, lambda n: first <= n < first + 3)
        run = train(settings, "run")
    assert f"back to step {first // 2 * 2}" in caplog.text
    assert logs(run) == logs(straight)
    assert same(weights(run), weights(straight))
    assert run.summary["stopped"] == "steps"
    assert run.summary["warnings"] == straight.summary["warnings"]


@pytest.mark.parametrize(("dtype", "moment"), [("float32", 1), ("bfloat16", 6)])
def test_infinite_weights_once_leave_no_trace(settings: dict[str, Any], dtype: str, moment: int) -> None:
    """Weights and AdamW's moments are those of the last checkpoint, or of the model as loaded."""
    settings |= {"model.dtype": dtype, "train.steps": 8}
    straight = train(settings, "straight")
    with pytest.MonkeyPatch.context() as patch:
        break_weights(patch, lambda n: n == moment)
        run = train(settings, "run")
    assert logs(run) == logs(straight)
    assert same(weights(run), weights(straight))


def test_two_in_a_row_are_skipped_and_counted(settings: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_gradients(patch, lambda n: n in (3, 4, 6), math.inf)
        run = train(settings, "run")
    steps = run.steps
    assert [s["step"] for s in steps if s["not_finite"] == "gradient"] == [3, 4, 6]
    assert [s["grad_norm"] for s in steps if s["not_finite"]] == [None] * 3
    assert not any(s["updated"] for s in steps if s["not_finite"])
    assert run.summary["stopped"] == "steps"
    assert "gradient not finite in 3 of 10 steps" in run.summary["warnings"][0]
    for line in (run.path / "steps.jsonl").read_text().splitlines():
        strict_json(line)


def test_gradients_that_stay_not_finite_stop_the_run(settings: dict[str, Any]) -> None:
    """From the fifth update on: back to step 4 after steps 5 to 7, and a stop after them again."""
    good = train(settings | {"train.steps": 4}, "good")
    with pytest.MonkeyPatch.context() as patch:
        break_gradients(patch, lambda n: n >= 5)
        with pytest.raises(
            NotFiniteError, match="gradient not finite in step 7 and in the 2 before"
        ) as caught:
            train(settings, "run")
    assert caught.value.exit_code == 1
    assert "--update.learning-rate" in caught.value.remedy
    run = Run(Path("runs/run"))
    assert [s["step"] for s in run.steps] == list(range(1, 8))
    assert checkpoint_steps(run.path / "checkpoints")[-1] == 4  # none is saved in between
    assert same(weights(run), weights(good))
    summary = strict_json((run.path / "summary.json").read_text())
    assert (summary["stopped"], summary["steps"]) == ("not finite", 4)
    of_four_steps = [summary[key] for key in ("samples", "tokens")]
    assert of_four_steps == [good.summary[key] for key in ("samples", "tokens")]
    assert summary["best_step"] <= 4
    assert diagnose(run).figures[0].startswith("4 of 10 steps")
    [warning] = summary["warnings"]
    assert "gradient not finite in 3 of 7 steps" in warning
    assert "were not finite" in (run.path / "report.html").read_text()
    resumed = train(settings, "run", resume=True)  # the fault is gone
    assert [s["step"] for s in resumed.steps] == list(range(1, 11))


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_a_learning_rate_that_overflows_ends_with_the_model_as_it_was(
    model_folder: Path, in_tmp: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real thing, by the command: exit status 1, and no broken weight on the disk."""
    Path("mine.py").write_text(TASK)
    args = ["--model.name", str(model_folder), "--task.name", "./mine.py", "--rollout.engine", engine]
    args += ["--update.learning-rate", "1e38", "--update.warmup-steps", "0", "--update.max-grad-norm", "9"]
    assert main(["train", RECIPE, *args, "--run", "a"]) == 1
    out, err = capsys.readouterr()
    assert "weights not finite in step 1" in err
    assert "no update: weights not finite" in out
    assert "max_new_tokens" not in out + err
    run = Run(Path("runs/a"))
    loaded = load_file(model_folder / "model.safetensors")
    assert same(weights(run), loaded)
    assert run.summary["stopped"] == "not finite"
    assert [s["not_finite"] for s in run.steps] == ["weights"]
    assert latest_checkpoint(run.path / "checkpoints") is None


def test_log_probabilities_that_are_not_finite_count_too(settings: dict[str, Any]) -> None:
    """Finite weights of 1e10 overflow in the forward pass: without a signal, nothing else would tell."""
    wild = settings | {"update.learning_rate": 1e10, "update.warmup_steps": 0, "rollout.engine": "native"}
    with pytest.raises(NotFiniteError):
        train(wild, "run")
    steps = Run(Path("runs/run")).steps
    assert steps[0]["updated"]
    assert all(s["not_finite"] for s in steps[1:])
    assert all(s["entropy"] is None for s in steps[1:])
