"""Save and resume, exactly and atomically.

    checkpoints/step-N/state.safetensors   the weights that the optimizer moves, and its moments
    checkpoints/step-N/meta.json           the step, the state's hash, and what resuming.py says of the run

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
    """A checkpoint as it was read back."""

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
            "the one before is intact; make room and go on with --resume",
        ) from error
    for old in checkpoint_steps(folder)[:-KEPT]:
        shutil.rmtree(folder / f"step-{old}")


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; one that is damaged is named and the one before taken."""
    remove_leftovers(folder)
    for step in reversed(checkpoint_steps(folder)):
        place = folder / f"step-{step}"
        try:
            meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
            if _hash(place / "state.safetensors") == meta["sha256"]:
                return Checkpoint(step, load_file(place / "state.safetensors"), meta)
        except (OSError, ValueError, KeyError):
            pass
        logger.warning("%s is damaged: its contents do not match its hash; taking the one before", place)
        shutil.rmtree(place)  # so that the step can be saved again
    return None


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    return sorted(int(found[1]) for p in folder.glob("*") if (found := _NAME.fullmatch(p.name)))


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill left half written."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """The last step that a checkpoint holds; 0: none does."""
    seconds: float = 0.0
    """Spent up to there."""
    dry_run_bytes: int | None = None
    """The peak of the largest step, which is tried before the first; None: it was not tried."""


@dataclass(frozen=True, slots=True)
class Resuming:
    """Says what a checkpoint says of the run, and brings a run back to it."""

    run: Run
    config: Config
    updater: Updater
    engine: Engine
    data: str
    """The fingerprint of the task's problems."""
    versions: Mapping[str, str]

    @property
    def at_once(self) -> dict[str, int]:
        """How much may pass at once, which is less from when memory ran out."""
        return {
            "memory/micro_batch_tokens": self.updater.micro_batch_tokens,
            "memory/max_num_seqs": self.engine.max_num_seqs,
        }

    def meta(self, seconds: float, dry_run_bytes: int | None) -> dict[str, Any]:
        """What a checkpoint says of a run that has taken so long."""
        said = {"data": self.data, "seconds": seconds, "versions": self.versions}
        return said | {"dry_run_bytes": dry_run_bytes, "at_once": self.at_once}

    def resume(self) -> Progress:
        """Take weights, optimizer state and sizes from the last checkpoint, and the logs back to it.

        Raises UsageError where the task's problems are no longer those of the run.
        """
        found = latest_checkpoint(self.run.path / "checkpoints")
        if found is None:
            self.run.rewind(0)
            return Progress()
        if found.meta["data"] != self.data:
            raise UsageError(
                f"the task's problems have changed since {self.run.path} was begun",
                "restore them, or begin a new run",
            )
        if found.meta["versions"] != self.versions:
            logger.warning("versions differ from those the run was begun with: it may not be bit for bit")
        self.updater.load_state_dict(found.tensors)
        self._go_on_as_small(found.meta.get("at_once", {}))
        self.run.rewind(found.step)
        return Progress(found.step, found.meta["seconds"], found.meta.get("dry_run_bytes"))

    def _go_on_as_small(self, at_once: Mapping[str, int]) -> None:
        """As the checkpoint was left, but where the config has another size now."""

        def same(key: str) -> bool:
            return bool(config_value(self.run.config, key) == config_value(self.config, key))

        if at_once and same("update.micro_batch_tokens"):
            self.updater.micro_batch_tokens = at_once["memory/micro_batch_tokens"]
        if at_once and same("rollout.max_num_seqs"):
            self.engine.max_num_seqs = at_once["memory/max_num_seqs"]
