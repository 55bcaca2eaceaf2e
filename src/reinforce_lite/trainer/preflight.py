"""What a run is refused for before its first step. All raise UsageError."""

import shutil
from collections.abc import Sequence

from reinforce_lite import config
from reinforce_lite.errors import UsageError
from reinforce_lite.planner import plan
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer import checkpoint
from reinforce_lite.types import Problem

SAFE_TO_CHANGE = frozenset({"train.steps", "train.hours", "train.save_every", "log.trackers", *plan.SMALLER})
"""The last of these may have to change when memory runs out."""


def greedy(settings: config.Config) -> None:
    """Evaluations during training are one greedy answer."""
    if settings.eval.samples > 1:
        raise UsageError(
            "eval.samples is read by `eval` only: evaluations during training are one greedy answer",
            "leave it out, and after training: reinforce-lite eval RUN --eval.samples "
            f"{settings.eval.samples}",
        )


def same_config(settings: config.Config, run: Run) -> None:
    """A run goes on with the config that it was begun with."""
    if not run.begun:
        return
    changed = config.differences(run.config, settings, SAFE_TO_CHANGE)
    if changed:
        raise UsageError(
            f"this is not the run that was begun in {run.path}: {'; '.join(changed)}",
            f"leave these as they were (only {' and '.join(sorted(SAFE_TO_CHANGE))} may change)",
        )


def enough(problems: Sequence[Problem], settings: config.Config) -> None:
    """A step's questions differ."""
    if len(problems) < settings.rollout.prompts_per_step:
        raise UsageError(
            f"the task has {len(problems)} training problems, fewer than one step needs "
            f"({settings.rollout.prompts_per_step})",
            "add problems, or lower rollout.prompts_per_step",
        )


def room(run: Run, state_bytes: int, model_bytes: int) -> None:
    """The checkpoints and models of the run fit on the disk."""
    needed = (checkpoint.KEPT + 1) * state_bytes + 3 * model_bytes
    there = shutil.disk_usage(run.path).free
    if there < needed:
        raise UsageError(
            f"the run needs up to {needed / 1e9:.1f} GB on the disk of {run.path.absolute()}, "
            f"where {there / 1e9:.1f} GB are free",
            "make room, or start it in another folder",
        )
