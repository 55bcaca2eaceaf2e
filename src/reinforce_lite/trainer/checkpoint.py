"""Save and resume, exactly and atomically.

    checkpoints/step-N/state.safetensors   the weights that the optimizer moves, and its moments
    checkpoints/step-N/meta.json           the step, the state's hash, and what resuming.py says of the run

A checkpoint is written beside its place, flushed to the disk and renamed, so it is whole or not
there. No random state is kept: every draw is seeded by the step that makes it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reinforce_lite.errors import ReinforceLiteError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)")
KEPT = 2  # the last, and the one before in case the last is damaged


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it was read back."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save(folder: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `folder`/step-N, then drop all but the last two. Raises ReinforceLiteError on a full disk."""
    target, beside = folder / f"step-{step}", folder / f".step-{step}"
    clean(folder)
    try:
        beside.mkdir(parents=True)
        save_file({name: t.contiguous() for name, t in tensors.items()}, beside / "state.safetensors")
        about = meta | {"step": step, "sha256": _hash(beside / "state.safetensors")}
        (beside / "meta.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
        for file in beside.iterdir():
            _flush(file)
        beside.rename(target)
        _flush(folder)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        shutil.rmtree(beside, ignore_errors=True)
        raise ReinforceLiteError(
            f"the checkpoint of step {step} can't be written: {getattr(error, 'strerror', None) or error}",
            "the one before is intact; make room and go on with --resume",
        ) from error
    for old in steps(folder)[:-KEPT]:
        shutil.rmtree(folder / f"step-{old}")


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; one that is damaged is named and the one before taken."""
    clean(folder)
    for step in reversed(steps(folder)):
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


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    return sorted(int(found[1]) for p in folder.glob("*") if (found := _NAME.fullmatch(p.name)))


def clean(folder: Path) -> None:
    """Remove what a kill left half written."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
