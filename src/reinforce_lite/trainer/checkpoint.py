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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reinforce_lite.config import Config, config_value
from reinforce_lite.engines.base import Engine
from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.learner.updater import Updater
from reinforce_lite.runlog.run import Run
from reinforce_lite.utils.atomic import replace_folder

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
    remove_leftovers(folder)
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
    remove_leftovers(folder)
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


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left incomplete."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)


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


@dataclass(frozen=True, slots=True)
class Checkpointer:
    """Saves what a resumed run continues from, and restores it."""

    run: Run
    config: Config
    updater: Updater
    engine: Engine
    data_fingerprint: str
    """Of the task's problems."""
    versions: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """The run's checkpoints."""
        return self.run.path / "checkpoints"

    def saved(self, step: int) -> bool:
        """Whether this step has a checkpoint."""
        return step in checkpoint_steps(self.folder)

    def save(self, progress: Progress) -> None:
        """Write the checkpoint of a step, after the logs up to that step are on the disk.

        Raises ReinforceLiteError when it can't be written.
        """
        self.run.sync()
        meta = {
            "data": self.data_fingerprint,
            "seconds": progress.seconds,
            "versions": dict(self.versions),
            "dry_run_bytes": progress.dry_run_bytes,
            "micro_batch_tokens": self.updater.micro_batch_tokens,
            "max_num_seqs": self.engine.max_num_seqs,
        }
        save_checkpoint(self.folder, progress.step, self.updater.state_dict(), meta)

    def restore(self) -> Progress:
        """Load weights, optimizer state and sizes from the last checkpoint, and rewind the logs to it.

        Raises UsageError where the task's problems are no longer those of the run.
        """
        checkpoint = latest_checkpoint(self.folder)
        if checkpoint is None:
            self.run.rewind(0)
            return Progress()
        meta = checkpoint.meta
        if meta["data"] != self.data_fingerprint:
            raise UsageError(
                f"the task's problems have changed since {self.run.path} was started",
                "restore them, or start a new run",
            )
        if meta["versions"] != self.versions:
            logger.warning("package versions differ from the run's: it may not continue bit for bit")
        self.updater.load_state_dict(checkpoint.tensors)
        self._restore_sizes(meta)
        self.run.rewind(checkpoint.step)
        return Progress(checkpoint.step, meta["seconds"], meta["dry_run_bytes"])

    def _restore_sizes(self, meta: Mapping[str, Any]) -> None:
        """Sizes that were halved when memory ran out stay halved, unless the config was changed since."""
        if self._unchanged("update.micro_batch_tokens"):
            self.updater.micro_batch_tokens = meta["micro_batch_tokens"]
        if self._unchanged("rollout.max_num_seqs"):
            self.engine.max_num_seqs = meta["max_num_seqs"]

    def _unchanged(self, key: str) -> bool:
        return bool(config_value(self.run.config, key) == config_value(self.config, key))
