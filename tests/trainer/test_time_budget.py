"""A run that is given some time ends within it, evaluated and saved, on a clock that the test moves."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from helpers import run_files as runs
from helpers.paths import RECIPE
from helpers.tiny import ToyTask, make_model
from reinforce_lite import api
from reinforce_lite import pipeline as pipeline_module
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks.base import Callback
from reinforce_lite.callbacks.final_summary import final_summary
from reinforce_lite.errors import UsageError
from reinforce_lite.pipeline import Pipeline
from reinforce_lite.report import refresher
from reinforce_lite.report.write import write_report
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import create_run, find_run
from reinforce_lite.trainer import checkpoint, export, session, trainer
from reinforce_lite.trainer.checkpoint import checkpoint_steps
from reinforce_lite.trainer.context import prepare
from reinforce_lite.trainer.time_budget import TimeBudget
from reinforce_lite.utils import clock, memory


class Wall:
    """The clock on the wall: it moves when something is done, and a little when it is looked at."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        self.time += 1e-6
        return self.time

    def spend(self, job: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            self.time += seconds
            return job(*args, **kwargs)

        return slow


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    made = Wall()
    monkeypatch.setattr(clock, "now", made)
    return made


def test_is_there_time_for_another_step_by_hand(wall: Wall) -> None:
    """Finishing: 1.2 x (30 + 20 + 10) + 3 = 75; a step of 50: 60 with its margin."""
    ahead = TimeBudget(wall.time + 135.5, {"test": 30.0, "checkpoint": 20.0, "model": 10.0}, [40.0, 50.0])
    assert ahead.allows_step()
    assert not ahead.allows_step(["checkpoint"])  # 24 more
    wall.time += 1
    assert not ahead.allows_step()
    assert TimeBudget(None).allows_step()


def test_saves_are_guessed_until_they_are_measured(settings: dict[str, Any]) -> None:
    """At 100 MB/s, four bytes for each of the tiny model's parameters; half an hour is 1800 s."""
    config = resolve_config(RECIPE, settings | {"train.hours": 0.5}, ToyTask())
    run = create_run("a")
    run.append("evals", {"step": 0, "split": "test", "seconds": 5.0})
    budget = prepare(config, run, ToyTask(), Callback(), 900.0).budget
    model_seconds = 4 * sum(p.numel() for p in make_model().parameters()) / 1e8
    assert budget.durations["model"] == budget.durations["best"] == pytest.approx(model_seconds)
    assert budget.durations["checkpoint"] == pytest.approx(3 * model_seconds, rel=0.01)  # with two moments
    assert budget.end == 900 + 1800


def test_what_is_left_by_hand(wall: Wall) -> None:
    ahead = TimeBudget(None, {"test": 7.0}, [99.0, *[2.0] * 10])
    assert ahead.eta(10, 40) == 30 * 2 + 7
    ahead.end = wall.time + 40
    assert ahead.eta(10, 40) == pytest.approx(40, abs=0.01)
    assert ahead.eta(30, 40) == 27


def test_what_happens_again_and_again_is_counted_each_time() -> None:
    """90 steps of 1 s; evaluations after steps 10, 20 ... 100 and saves after 25, 50, 75 and 100."""
    durations, every = {"validation": 5.0, "checkpoint": 2.0}, {"validation": 10, "checkpoint": 25}
    assert TimeBudget(None, durations, [1.0], every=every).eta(10, 100) == 90 + 10 * 5 + 4 * 2
    assert TimeBudget(None, durations, [1.0], every=every).eta(100, 100) == 5 + 2


def test_a_resume_sets_time_aside_to_compare_the_merged_adapter(settings: dict[str, Any]) -> None:
    """It samples 50 problems twice: as long as the 100 of the test, of which an earlier session knew."""
    config = resolve_config(RECIPE, settings | {"train.hours": 0.5, "adapter.rank": 2}, ToyTask())
    run = create_run("a")
    line = runs.evaluation(0, "test", runs.eval_completions(0, [True] * 100))
    run.append("evals", line | {"seconds": 40.0})
    assert prepare(config, run, ToyTask(), Callback(), 900.0).budget.durations["merge"] == 40.0


def run_for(
    hours: float,
    slower: float,
    wall: Wall,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    reports: float = 0.4,
) -> Run:
    """1 s before it begins, 20 s where the largest step is tried, steps of 1 s, 1.5 s for each evaluation (it samples too), 0.3 s for each save,
    `reports` for each report."""
    for owner, name, seconds in (
        (pipeline_module, "load_policy", 1.0),
        (trainer, "dry_run", 20.0),
        (trainer, "sample_completions", 1.0),
        (Pipeline, "eval_groups", 0.5),
        (checkpoint, "save_checkpoint", 0.3),
        (export, "save_policy", 0.3),
        (refresher, "write_report", reports),
    ):
        monkeypatch.setattr(owner, name, wall.spend(getattr(owner, name), seconds * slower))
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)  # so that there is a dry run where time allows
    given = resolve_config(RECIPE, settings | {"train.hours": hours, "train.steps": 1000}, ToyTask())
    return session.train(given, create_run("timed"), ToyTask(), Callback(), start=wall.time)


@pytest.mark.parametrize(("slower", "at_least"), [(1, 80), (10, 3)])
def test_a_run_ends_in_time_evaluated_and_saved(
    slower: float,
    at_least: int,
    wall: Wall,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    """In 180 s, on a machine ten times slower too; and no time is thrown away."""
    began = wall.time
    run = run_for(0.05, slower, wall, monkeypatch, settings)
    assert wall.time - began <= 180
    assert run.summary["stopped"] == "hours"
    assert run.summary["memory"]["dry_run_bytes"] is None  # there is no time to try the largest step
    done = run.summary["steps"]
    assert at_least <= done < 1000
    assert {e["split"] for e in run.evals if e["step"] == done} == {"validation", "test"}
    assert run.summary["evals"]["after"]["n"] == run.summary["evals"]["before"]["n"]
    assert (run.path / "model" / "model.safetensors").is_file()
    assert checkpoint_steps(run.path / "checkpoints")[-1] == done
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(final_summary(run))
    assert f"after {done} of 1000 steps" in " ".join(console.export_text().split())


def test_a_first_step_of_unknown_time_is_taken(wall: Wall) -> None:
    """24 minutes, 2 of them gone; finishing takes 1.2 x (93 + 786 + 30) + 3 = 1094 of the 1320 seconds left."""
    ahead = TimeBudget(wall.time + 0.4 * 3600, {"checkpoint": 30.0, "validation": 93.0, "test": 786.0})
    wall.time += 120
    assert ahead.allows_step()
    ahead.dry_run_seconds = 189.0  # a known one of 1.2 x 189 = 227 does not fit
    assert not ahead.allows_step()
    ahead.dry_run_seconds = 187.0
    assert ahead.allows_step()


def test_a_run_without_time_for_a_step_is_refused(
    wall: Wall, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """It names what it measured and hours that are enough; the evaluations are not repeated."""
    with pytest.raises(UsageError, match=r"validation 1 s, test 1 s") as refused:
        run_for(0.001, 1, wall, monkeypatch, settings)
    assert "eval.n" in refused.value.remedy
    run = find_run("timed")
    assert not (run.path / "model").exists()
    assert run.summary == {}
    (hours,) = re.findall(r"train --run timed --resume --train.hours ([\d.]+)", refused.value.remedy)
    longer = resolve_config(RECIPE, settings | {"train.hours": float(hours), "train.steps": 1000}, ToyTask())
    session.train(longer, run, ToyTask(), Callback(), start=wall.time)
    assert run.summary["steps"] > 0
    assert [e["step"] for e in run.evals].count(0) == 2


def test_reports_in_between_are_counted(
    wall: Wall, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """10 s after every step of 1 s."""
    monkeypatch.setattr(refresher, "MAX_SHARE", 1e9)
    began = wall.time
    run = run_for(0.05, 1, wall, monkeypatch, settings, reports=10.0)
    assert 130 <= wall.time - began <= 180
    assert run.summary["stopped"] == "hours"


def test_the_first_report_of_a_run_that_goes_on_is_counted(
    wall: Wall, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """What a report takes is not in the run directory: it is measured before time is decided on."""
    run_for(0.01, 1, wall, monkeypatch, settings)
    monkeypatch.setattr(refresher, "write_report", wall.spend(write_report, 30.0))
    longer = resolve_config(RECIPE, settings | {"train.hours": 64 / 3600, "train.steps": 1000}, ToyTask())
    began = wall.time
    session.train(longer, find_run("timed"), ToyTask(), Callback(), start=wall.time)
    assert wall.time - began <= 64


def test_steps_come_first_when_they_do(wall: Wall, settings: dict[str, Any], no_spare_memory: None) -> None:
    given = resolve_config(RECIPE, settings | {"train.hours": 100.0, "train.steps": 2}, ToyTask())
    run = session.train(given, create_run("short"), ToyTask(), Callback(), start=wall.time)
    assert run.summary["stopped"] == "steps"
    assert run.summary["steps"] == 2
    assert run.summary["memory"]["dry_run_bytes"] > 0


def test_a_run_that_ran_out_of_time_goes_on(
    wall: Wall,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    """With the hours of its new process; and the steps are those of a run that was never short of time."""
    first = run_for(0.005, 1, wall, monkeypatch, settings)
    assert 0 < first.summary["steps"] < 10
    longer = resolve_config(RECIPE, settings | {"train.hours": 1.0, "train.steps": 10}, ToyTask())
    again = session.train(longer, find_run("timed"), ToyTask(), Callback(), start=wall.time)
    assert again.summary["stopped"] == "steps"
    plain = api.train(RECIPE, settings | {"train.steps": 10}, task=ToyTask(), run="plain", quiet=True)
    keys = ("step", "reward", "loss", "grad_norm")
    assert [[s[k] for k in keys] for s in again.steps] == [[s[k] for k in keys] for s in plain.steps]
