"""The Python face: train and evaluate, as the commands do.

import reinforce_lite as rl

run = rl.train("quickstart", {"train.steps": 10})
run.summary["evals"]["after"]["strict"]
"""

from collections.abc import Mapping
from typing import Any

from reinforce_lite import config
from reinforce_lite import pipeline as road
from reinforce_lite.callbacks import console as screen
from reinforce_lite.evaluation import evaluate as evaluation
from reinforce_lite.evaluation import failures
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.evaluation.failures import Failure
from reinforce_lite.runlog import run as runlog
from reinforce_lite.runlog.run import Run
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer import trainer


def train(
    recipe: str = "quickstart",
    overrides: Mapping[str, Any] | None = None,
    *,
    task: Task | None = None,
    run: str = "",
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Train, and return the run: `run.summary`, `run.steps`, `run.path`.

    `overrides` are {"section.key": value} over the recipe; `task` takes the place of the recipe's;
    `run` is the name under runs/. Raises ReinforceLiteError, as the command would say it.
    """
    settings = settings_of(recipe, overrides, task)
    opened = runlog.open_for_training(run or runlog.new_name(settings.recipe), resume)
    return trainer.train(settings, opened, task, screen.Silent() if quiet else screen.make())


def settings_of(recipe: str, overrides: Mapping[str, Any] | None, task: Task | None) -> config.Config:
    """The config of a run; a task given as an object is named in it after its class."""
    named = {"task.name": type(task).__name__} if task is not None else {}
    return config.load(recipe, {**(overrides or {}), **named})


def evaluate(
    model_or_run: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    task: Task | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Accuracy on the test problems: of a run's trained model, a folder or a hub name.

    One greedy answer to each, or `{"eval.samples": 8}` sampled ones, which give pass@k as well.
    """
    settings = config.override(runlog.trained(model_or_run, config.load("quickstart")), overrides or {})
    return examine(settings, screen.Silent() if quiet else screen.make(), task)[0]


def examine(
    settings: config.Config, show: screen.Screen, task: Task | None = None
) -> tuple[Evaluation, list[Failure]]:
    """Evaluate `settings.model` on the first `settings.eval.n` test problems: how many are right, and why the
    others are wrong."""
    with show:
        show.phase("loading", 0)
        stations = road.build(settings, task)
        problems = stations.problems("test", settings.eval.n)
        samples = settings.eval.samples
        show.phase("answering", len(problems) * samples)
        groups = stations.answer(problems, show.advance, samples)
        result = evaluation.evaluate(groups, None, "test")
        show.evaluated(result)
    return result, failures.common(groups)
