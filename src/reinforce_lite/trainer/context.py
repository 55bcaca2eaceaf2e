"""What a run needs before its first step, prepared once and not replaced afterwards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reinforce_lite.callbacks.base import SELF_CHECK, Callback
from reinforce_lite.config import Config
from reinforce_lite.engines import COPYING_ENGINES
from reinforce_lite.learner.objective import check_engine_correction, check_group_size
from reinforce_lite.learner.optimizers import check_optimizer
from reinforce_lite.learner.presets import Objective, build_objective
from reinforce_lite.learner.sharded_updater import make_updater
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models import distributed
from reinforce_lite.models.distributed import agree, check_same, is_main
from reinforce_lite.models.policy import Policy
from reinforce_lite.pipeline import Pipeline, build_pipeline
from reinforce_lite.planner.plan import check_fits, plan_unchanged
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run
from reinforce_lite.tasks import load_task
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer.audit_cache import KeptAudit, find_audit, weights_digest
from reinforce_lite.trainer.checkpoint import Checkpointer, Progress
from reinforce_lite.trainer.export import merge_seconds
from reinforce_lite.trainer.freshness import PROMPTS, FreshnessCheck, fixed_prompts
from reinforce_lite.trainer.preflight import check_disk_space, check_enough_problems, check_same_prompt
from reinforce_lite.trainer.self_check import self_check
from reinforce_lite.trainer.time_budget import DISK_BYTES_PER_SECOND, TimeBudget
from reinforce_lite.types import NO_PERMISSIONS, Permissions
from reinforce_lite.utils.environment import describe_machine


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """The parts of one run; its config is the pipeline's."""

    run: Run
    pipeline: Pipeline
    objective: Objective
    updater: Updater
    checkpointer: Checkpointer
    progress: Progress
    """How far the run had come when it was resumed."""
    budget: TimeBudget
    machine: Mapping[str, Any]
    """What machine.json holds."""
    permissions: Permissions
    """To load the model again."""
    audit: KeptAudit | None
    """Of this recipe, where the first step is still to come."""
    audit_record: Record
    """What audit.json holds; empty if the recipe was not audited before the run was started."""
    freshness: FreshnessCheck | None
    """For an engine that has a copy of the weights."""


def prepare(
    config: Config,
    run: Run,
    task: Task | None,
    callback: Callback,
    start: float,
    permissions: Permissions = NO_PERMISSIONS,
    base: Policy | None = None,
) -> TrainingContext:
    """Check what can be checked cheaply, load the model, restore the last checkpoint.

    The hours of the run count from `start`, by `utils.clock`. Raises UsageError for a config, task or model
    that cannot work and for a model that would be computed wrong, DoesNotFitError where memory is too small.
    """
    objective = build_objective(**config.objective.model_dump())
    check_group_size(objective, config.rollout.group_size)
    check_engine_correction(objective, config.rollout)
    plan = plan_unchanged(config, trust_remote_code=permissions.trust_remote_code)
    check_fits(plan)
    check_optimizer(config.update)
    task = task or load_task(config.task)  # an error in it comes before the model is announced
    callback.phase(f"loading {config.model.name}")
    pipeline = build_pipeline(config, task, permissions, base)
    with _closing_on_error(pipeline):
        check_enough_problems(pipeline.problems("train"), config)
        check_same_prompt(pipeline.prompt_builder, run, pipeline.problems("train")[0].question)
        policy = pipeline.policy
        if not policy.llama:
            distributed.report_alive_with(policy.model.base_model)
        temperature = objective.temperature(config.rollout.temperature)
        updater = make_updater(policy, config.update, temperature, config.train.seed, config.corrected_at)
        if is_main():
            check_disk_space(run, updater.state_bytes, policy.saved_bytes)
        checkpointer = Checkpointer(run, pipeline, updater)
        _check_processes(checkpointer, policy)
        progress = checkpointer.restore()  # rewinds the logs, which the budget reads
        callback.phase(SELF_CHECK)
        check = self_check(pipeline, updater.forward_pass)
        machine = describe_machine(policy.device, policy.dtype) | {
            "planned_bytes": plan.total,
            "self_check": {"max_gap": check.max_gap, "bound": check.bound},
        }
        audit = None
        if not progress.step:
            audit = agree(lambda: find_audit(pipeline, checkpointer.data, checkpointer.reward_sources))
        return TrainingContext(
            run,
            pipeline,
            objective,
            updater,
            checkpointer,
            progress,
            _time_budget(config, run, updater, start),
            machine,
            permissions,
            audit=audit,
            audit_record=run.audit if run.started else audit.record if audit else {},
            freshness=_freshness_check(pipeline),
        )


@contextmanager
def _closing_on_error(pipeline: Pipeline) -> Iterator[None]:
    try:
        yield
    except BaseException:
        pipeline.close()
        raise


def _freshness_check(pipeline: Pipeline) -> FreshnessCheck | None:
    """None where engine and update share the weights."""
    config, policy = pipeline.config, pipeline.policy
    if config.rollout.engine not in COPYING_ENGINES:
        return None
    problems = pipeline.problems("train")[:PROMPTS]
    limit = getattr(policy.model.config, "max_position_embeddings", None)
    prompts = fixed_prompts([pipeline.prompt_builder(p.question) for p in problems], limit)
    return FreshnessCheck(policy, pipeline.engine, prompts, config.corrected_at)


def _check_processes(checkpointer: Checkpointer, policy: Policy) -> None:
    """Refuse processes that would not train the same run. Raises UsageError."""
    if distributed.size() > 1:
        versions = tuple(sorted(checkpointer.versions.items()))
        check_same(
            {"package versions": versions, "problems": checkpointer.data, "model": weights_digest(policy)}
        )


def _time_budget(config: Config, run: Run, updater: Updater, start: float) -> TimeBudget:
    """From the run's measured durations; before the first ones the saves are estimated by their size."""
    model_bytes = updater.policy.saved_bytes
    saves = {"checkpoint": updater.state_bytes, "model": model_bytes, "best": model_bytes}
    durations = {name: size / DISK_BYTES_PER_SECOND for name, size in saves.items()}
    durations |= {e["split"]: e["seconds"] for e in run.evals}
    if tests := [e for e in run.evals if e["split"] == "test"]:
        durations |= merge_seconds(updater.policy, tests[-1]["seconds"], tests[-1]["n"])
    end = None if config.train.hours is None else start + 3600 * config.train.hours
    every = {"validation": config.eval.every, "checkpoint": config.train.save_every}
    return TimeBudget(end, durations, [s.step_time for s in run.step_metrics], every=every)
