"""Everything that a run needs before its first step, prepared once and not replaced afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reinforce_lite.callbacks.base import Callback
from reinforce_lite.config import Config
from reinforce_lite.learner.objective import Objective, build_objective, check_group_size
from reinforce_lite.learner.optimizers import check_optimizer
from reinforce_lite.learner.updater import Updater
from reinforce_lite.pipeline import Pipeline, build_pipeline
from reinforce_lite.planner.plan import Plan, check_fits, plan_unchanged
from reinforce_lite.report.refresher import ReportRefresher
from reinforce_lite.runlog.run import Run
from reinforce_lite.tasks import task_fingerprint
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer.checkpoint import Checkpointer, Progress
from reinforce_lite.trainer.export import Exporter
from reinforce_lite.trainer.preflight import check_disk_space, check_enough_problems
from reinforce_lite.trainer.signals import SignalGuard
from reinforce_lite.trainer.time_budget import TimeBudget
from reinforce_lite.types import Problem
from reinforce_lite.utils.environment import describe_machine


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """The parts of one run."""

    config: Config
    run: Run
    callback: Callback
    plan: Plan
    objective: Objective
    pipeline: Pipeline
    problems: list[Problem]
    """Of the training split, without those whose prompt is too long."""
    updater: Updater
    machine: Mapping[str, Any]
    checkpointer: Checkpointer
    exporter: Exporter
    refresher: ReportRefresher
    signals: SignalGuard
    budget: TimeBudget
    start: float
    """The moment at which the process started, by `utils.clock`."""
    progress: Progress
    """How far the run had come when it was resumed."""


def prepare(
    config: Config,
    run: Run,
    task: Task | None,
    callback: Callback,
    signals: SignalGuard,
    command: str,
    start: float,
) -> TrainingContext:
    """Check what can be checked cheaply, load the model, restore the last checkpoint.

    Raises UsageError for a config, task or model that cannot work, DoesNotFitError where memory is too small.
    """
    objective = build_objective(**config.objective.model_dump())
    check_group_size(objective, config.rollout.group_size)
    plan = plan_unchanged(config)
    check_fits(plan)
    check_optimizer(config.update)
    callback.phase(f"loading {config.model.name}")
    pipeline = build_pipeline(config, task)
    problems = pipeline.problems("train")
    check_enough_problems(problems, config)
    policy = pipeline.policy
    temperature = objective.temperature(config.rollout.temperature)
    updater = Updater(policy, config.update, temperature, config.train.seed)
    machine = describe_machine(policy.device, policy.dtype)
    fingerprint = task_fingerprint(pipeline.task)
    checkpointer = Checkpointer(run, config, updater, pipeline.engine, fingerprint, machine["versions"])
    model_bytes = policy.dtype.itemsize * sum(p.numel() for p in policy.model.parameters())
    check_disk_space(run, updater.state_bytes, model_bytes)
    progress = checkpointer.restore()
    return TrainingContext(
        config=config,
        run=run,
        callback=callback,
        plan=plan,
        objective=objective,
        pipeline=pipeline,
        problems=problems,
        updater=updater,
        machine=machine | {"planned_bytes": plan.total},
        checkpointer=checkpointer,
        exporter=Exporter(run, config, policy, command),
        refresher=ReportRefresher(run),
        signals=signals,
        budget=TimeBudget.create(
            config.train.hours,
            start,
            {"checkpoint": updater.state_bytes, "model": model_bytes, "best": model_bytes},
            {e["split"]: e["seconds"] for e in run.evals},
            [s.step_time for s in run.step_metrics],
        ),
        start=start,
        progress=progress,
    )
