"""What a run is refused for before its first step. Everything here raises UsageError."""

import shutil
from collections.abc import Sequence

from reinforce_lite.config import Config, config_differences
from reinforce_lite.errors import UsageError
from reinforce_lite.planner.plan import MEMORY_KEYS
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer import checkpoint
from reinforce_lite.types import Problem

SAFE_TO_CHANGE = frozenset({"train.steps", "train.hours", "train.save_every", "log.trackers", *MEMORY_KEYS})
"""Keys that may differ when a run is resumed. Those about memory are among them because a run that ran out of
memory may need smaller values."""


def check_same_config(config: Config, run: Run) -> None:
    """Refuse a config that differs from the one that the run was started with."""
    if not run.started:
        return
    changed = config_differences(run.config, config, SAFE_TO_CHANGE)
    if changed:
        raise UsageError(
            f"the config differs from the one that {run.path} was started with: {'; '.join(changed)}",
            f"leave these as they were (only {', '.join(sorted(SAFE_TO_CHANGE))} may change)",
        )


def check_enough_problems(problems: Sequence[Problem], config: Config) -> None:
    """The questions of one step must differ."""
    if len(problems) < config.rollout.prompts_per_step:
        raise UsageError(
            f"the task has {len(problems)} training problems, fewer than one step needs "
            f"({config.rollout.prompts_per_step})",
            "add problems, or lower rollout.prompts_per_step",
        )


def check_disk_space(run: Run, state_bytes: int, model_bytes: int) -> None:
    """The run's checkpoints and models must fit on the disk, with one more of each while it is written."""
    needed = (checkpoint.KEPT + 1) * state_bytes + 3 * model_bytes
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise UsageError(
            f"the run needs up to {needed / 1e9:.1f} GB on the disk of {run.path.absolute()}, "
            f"where {free / 1e9:.1f} GB are free",
            "free some space, or start the run in another folder",
        )
