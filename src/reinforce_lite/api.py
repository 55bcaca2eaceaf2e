"""The Python face: train and evaluate, as the commands do.

import reinforce_lite as rl

run = rl.train("quickstart", {"train.steps": 10})
run.summary["evals"]["after"]["strict"]
"""

from collections.abc import Mapping
from typing import Any

from reinforce_lite.callbacks.base import Callback, Silent
from reinforce_lite.callbacks.console import make_console
from reinforce_lite.config import Config, load_config, override_config
from reinforce_lite.evaluation.evaluate import Evaluation, evaluate_groups
from reinforce_lite.evaluation.failures import Failure, common_failures
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.runlog.run import Run, new_run_name, open_run, trained_config
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer import trainer
from reinforce_lite.utils.memory import limit_fragmentation


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
    config = resolve_config(recipe, overrides, task)
    opened = open_run(run or new_run_name(config.recipe), resume)
    return trainer.train(config, opened, task, Silent() if quiet else make_console())


def resolve_config(recipe: str, overrides: Mapping[str, Any] | None, task: Task | None) -> Config:
    """The config of a run; a task given as an object is named in it after its class."""
    named = {"task.name": type(task).__name__} if task is not None else {}
    return load_config(recipe, {**(overrides or {}), **named})


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
    config = override_config(trained_config(model_or_run, load_config("quickstart")), overrides or {})
    return evaluate_model(config, Silent() if quiet else make_console(), task)[0]


def evaluate_model(
    config: Config, show: Callback, task: Task | None = None
) -> tuple[Evaluation, list[Failure]]:
    """Evaluate `config.model` on the first `config.eval.n` test problems: how many are right, and why the
    others are wrong."""
    limit_fragmentation()
    with show:
        show.phase("loading", 0)
        pipeline = build_pipeline(config, task)
        problems = pipeline.problems("test", config.eval.n)
        samples = config.eval.samples
        show.phase("answering", len(problems) * samples)
        groups = pipeline.answer(problems, show.advance, samples)
        result = evaluate_groups(groups, None, "test")
        show.evaluated(result)
    return result, common_failures(groups)
