"""Save and resume, exactly and atomically.

    checkpoints/step-N/state.safetensors   the weights that the optimizer moves, and its moments
    checkpoints/step-N/meta.json           the step, the state's hash, data fingerprint, versions, sizes,
    seconds

A checkpoint is written completely or not at all (utils/atomic.py). No random
state is kept: every draw is seeded by the step that makes it.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.learner.updater import Updater
from reinforce_lite.pipeline import Pipeline
from reinforce_lite.runlog.run import Run
from reinforce_lite.tasks import reward_sources, task_fingerprint
from reinforce_lite.utils.atomic import replace_folder
from reinforce_lite.utils.environment import package_versions

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)")
KEPT = 2  # the last, and the one before in case the last is damaged


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read back."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `folder`/step-N, then drop all but the last two. Raises ReinforceLiteError on a full disk."""
    try:
        with replace_folder(folder / f"step-{step}") as temporary:
            state = temporary / "state.safetensors"
            save_file({name: t.contiguous() for name, t in tensors.items()}, state)
            about = meta | {"step": step, "sha256": _hash(state)}
            (temporary / "meta.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise ReinforceLiteError(
            f"the checkpoint of step {step} can't be written: {getattr(error, 'strerror', None) or error}",
            "earlier checkpoints are untouched; free some disk space, then continue with --resume",
        ) from error
    for old in checkpoint_steps(folder)[:-KEPT]:
        shutil.rmtree(folder / f"step-{old}")


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint. A damaged one is named and removed, and the one before is used."""
    for leftover in folder.glob(".step-*"):  # what a killed process left incomplete
        shutil.rmtree(leftover)
    for step in reversed(checkpoint_steps(folder)):
        path = folder / f"step-{step}"
        try:
            meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            if _hash(path / "state.safetensors") == meta["sha256"]:
                return Checkpoint(step, load_file(path / "state.safetensors"), meta)
        except (OSError, ValueError, KeyError):
            pass
        logger.warning("%s is damaged or unreadable, and is removed: using the one before it, if any", path)
        shutil.rmtree(path)  # so that the step can be saved again
    return None


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    return sorted(int(match[1]) for p in folder.glob("*") if (match := _NAME.fullmatch(p.name)))


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """The last step with a checkpoint; 0: there is none."""
    seconds: float = 0.0
    """Spent up to that step."""
    dry_run_bytes: int | None = None
    """Peak memory of the dry run; None: there was none."""


class Checkpointer:
    """Saves what a resumed run continues from, and restores it."""

    def __init__(self, run: Run, pipeline: Pipeline, updater: Updater) -> None:
        self.run, self.pipeline, self.updater = run, pipeline, updater
        self.folder = run.path / "checkpoints"
        self.data = task_fingerprint(pipeline.task)
        self.reward_sources = reward_sources(pipeline.task)
        self.versions = package_versions()

    def save(self, progress: Progress) -> None:
        """Write the checkpoint of a step, after the logs up to that step are on the disk.

        Raises ReinforceLiteError when it can't be written.
        """
        self.run.sync()
        meta = asdict(progress) | {
            "data": self.data,
            "reward": self.reward_sources,
            "versions": self.versions,
            "micro_batch_tokens": self.updater.micro_batch_tokens,
            "max_num_seqs": self.pipeline.engine.max_num_seqs,
        }
        save_checkpoint(self.folder, progress.step, self.updater.state_dict(), meta)

    def restore(self) -> Progress:
        """Load weights, optimizer state and sizes from the last checkpoint, and rewind the logs to it.

        Sizes that were halved when memory ran out stay halved, unless the config was changed since. Raises
        UsageError where the task's problems are no longer those of the run.
        """
        checkpoint = latest_checkpoint(self.folder)
        if checkpoint is None:
            self.run.rewind(0)
            return Progress()
        meta = checkpoint.meta
        if meta["data"] != self.data:
            raise UsageError(
                f"the task's problems have changed since {self.run.path} was started",
                "restore them, or start a new run",
            )
        if changed := self._changed_reward(meta.get("reward", {})):
            logger.warning(
                "the reward's code has changed since step %d: %s; rewards and accuracies before and after "
                "it can't be compared",
                *(checkpoint.step, ", ".join(changed)),
            )
        if meta["versions"] != self.versions:
            logger.warning("package versions differ from the run's: it may not continue bit for bit")
        self.updater.load_state_dict(checkpoint.tensors)
        before, config = self.run.config, self.pipeline.config
        if before.update.micro_batch_tokens == config.update.micro_batch_tokens:
            self.updater.micro_batch_tokens = meta["micro_batch_tokens"]
        if before.rollout.max_num_seqs == config.rollout.max_num_seqs:
            self.pipeline.engine.max_num_seqs = meta["max_num_seqs"]
        self.run.rewind(checkpoint.step)
        return Progress(checkpoint.step, meta["seconds"], meta["dry_run_bytes"])

    def _changed_reward(self, saved: Mapping[str, str]) -> list[str]:
        """The reward's source files that differ from those of a checkpoint that named them."""
        return [name for name, file in self.reward_sources.items() if saved and saved.get(name) != file]
