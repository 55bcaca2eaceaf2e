"""The Python API: train, evaluate and load, as the commands do.

import reinforce_lite as rl

run = rl.train("quickstart", {"train.steps": 10})
print(run.before, run.after)
"""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from reinforce_lite import pipeline
from reinforce_lite.callbacks.base import Callback
from reinforce_lite.callbacks.console import make_console
from reinforce_lite.config import Config, load_config, override_config
from reinforce_lite.evaluation.evaluate import Evaluation, evaluate_groups
from reinforce_lite.evaluation.failures import Failure, common_failures
from reinforce_lite.models.distributed import join
from reinforce_lite.models.policy import Policy
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.runlog.run import Run, find_run, trained_config
from reinforce_lite.tasks import load_task
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer import session
from reinforce_lite.types import NO_PERMISSIONS, Permissions
from reinforce_lite.utils.memory import limit_fragmentation


def train(  # noqa: PLR0913 -- all but two by name
    recipe: str = "quickstart",
    overrides: Mapping[str, Any] | None = None,
    *,
    task: Task | None = None,
    run: str = "",
    resume: bool = False,
    quiet: bool = False,
    trust_remote_code: bool = False,
    allow_pickles: bool = False,
    base: Policy | None = None,
) -> Run:
    """Train, and return the run: `run.before`, `run.after`, `run.steps`, `run.summary`, `run.path`.

    `recipe` is a shipped recipe or a TOML file, `overrides` are {"section.key": value}, `task` replaces the
    recipe's task, `run` is the name under runs/ (by default the recipe's name and the time).
    `trust_remote_code` and `allow_pickles` are permissions (`types.Permissions`), which nothing else gives.
    `base` is a model of `load_base`, which then is not loaded again.
    Raises ReinforceLiteError with the message of the command.
    """
    config = resolve_config(recipe, overrides, task)
    join(config.model.device)
    config, opened = session.open_together(config, run, resume)
    permissions = Permissions(trust_remote_code, allow_pickles)
    callback = Callback() if quiet else make_console()
    return session.train(config, opened, task, callback, permissions=permissions, base=base)


def load_base(recipe: str = "quickstart-adapter", overrides: Mapping[str, Any] | None = None) -> Policy:
    """Load the model of a recipe once, for several calls of `train` that train adapters over it.

    base = rl.load_base("quickstart-adapter")
    runs = [rl.train("quickstart-adapter", {"train.seed": seed}, base=base) for seed in range(3)]

    Each run starts with a fresh adapter, and equals the same run in a process of its own. The comparison of
    merged completions is omitted, since merging would change the weights. Raises as `train`.
    """
    limit_fragmentation()
    return pipeline.load_base(load_config(recipe, overrides))


def load(run: str) -> Run:
    """An earlier run, by its name under runs/ or by path. Raises UsageError when there is none."""
    return find_run(run)


def evaluate(
    model_or_run: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    samples: int = 1,
    task: Task | None = None,
    quiet: bool = False,
    trust_remote_code: bool = False,
    allow_pickles: bool = False,
) -> Evaluation:
    """Accuracy on the test problems: of a run's trained model, a model folder or a hub name.

    One sample per problem is greedy; several are drawn as in training and give pass@k as well. Permissions
    and errors are those of `train`.
    """
    config = override_config(trained_config(model_or_run), overrides or {})
    permissions = Permissions(trust_remote_code, allow_pickles)
    return evaluate_model(config, Callback() if quiet else make_console(), samples, task, permissions)[0]


def resolve_config(recipe: str, overrides: Mapping[str, Any] | None, task: Task | None) -> Config:
    """The config of a run; a task given as an object is named after its class."""
    named = {"task.name": type(task).__name__} if task is not None else {}
    return load_config(recipe, {**(overrides or {}), **named})


def evaluate_model(
    config: Config,
    callback: Callback,
    samples: int = 1,
    task: Task | None = None,
    permissions: Permissions = NO_PERMISSIONS,
) -> tuple[Evaluation, list[Failure]]:
    """Evaluate `config.model` on the first `config.eval.n` test problems, and say why completions are
    wrong.
    """
    limit_fragmentation()
    with callback:
        task = task or load_task(config.task)  # an error in it comes before the model is announced
        callback.phase(f"loading {config.model.name}")
        with closing(build_pipeline(config, task, permissions)) as pipeline:
            problems = pipeline.problems("test", config.eval.n)
            callback.phase("evaluating on test", len(problems) * samples)
            groups = pipeline.eval_groups(problems, callback.advance, samples)
        result = evaluate_groups(groups, None, "test")
        callback.evaluated(result)
    return result, common_failures(groups)
