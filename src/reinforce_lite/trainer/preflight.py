"""What a run is refused for before its first step. All raise UsageError."""

import shutil
from collections.abc import Sequence

from reinforce_lite.config import Config, config_differences
from reinforce_lite.errors import UsageError
from reinforce_lite.planner.plan import MEMORY_KEYS
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer import checkpoint
from reinforce_lite.types import Problem

SAFE_TO_CHANGE = frozenset({"train.steps", "train.hours", "train.save_every", "log.trackers", *MEMORY_KEYS})
"""The last of these may have to change when memory runs out."""


def check_eval(config: Config) -> None:
    """Evaluations during training are one greedy answer."""
    if config.eval.samples > 1:
        raise UsageError(
            "eval.samples is read by `eval` only: evaluations during training are one greedy answer",
            f"leave it out, and after training: reinforce-lite eval RUN --eval.samples {config.eval.samples}",
        )


def check_same_config(config: Config, run: Run) -> None:
    """A run goes on with the config that it was begun with."""
    if not run.started:
        return
    changed = config_differences(run.config, config, SAFE_TO_CHANGE)
    if changed:
        raise UsageError(
            f"this is not the run that was begun in {run.path}: {'; '.join(changed)}",
            f"leave these as they were (only {' and '.join(sorted(SAFE_TO_CHANGE))} may change)",
        )


def check_enough_problems(problems: Sequence[Problem], config: Config) -> None:
    """A step's questions differ."""
    if len(problems) < config.rollout.prompts_per_step:
        raise UsageError(
            f"the task has {len(problems)} training problems, fewer than one step needs "
            f"({config.rollout.prompts_per_step})",
            "add problems, or lower rollout.prompts_per_step",
        )


def check_disk_space(run: Run, state_bytes: int, model_bytes: int) -> None:
    """The checkpoints and models of the run fit on the disk."""
    needed = (checkpoint.KEPT + 1) * state_bytes + 3 * model_bytes
    there = shutil.disk_usage(run.path).free
    if there < needed:
        raise UsageError(
            f"the run needs up to {needed / 1e9:.1f} GB on the disk of {run.path.absolute()}, "
            f"where {there / 1e9:.1f} GB are free",
            "make room, or start it in another folder",
        )
