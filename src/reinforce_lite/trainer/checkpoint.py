"""Save and resume, exactly and atomically.

    checkpoints/step-N/state.safetensors   the weights that the optimizer moves, and its moments
    checkpoints/step-N/meta.json           the step, data fingerprint, versions, sizes, seconds
    checkpoints/step-N/manifest.json       the hash of each of these files, and of the hashes

A checkpoint is written completely or not at all (utils/atomic.py). One that is not as it was written is set
aside under another name, and the one before is used. No random state is kept: every draw is seeded by the
step that makes it.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from reinforce_lite.config import override_config
from reinforce_lite.errors import UsageError, explain_file_errors
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.distributed import agree, broadcast_tensors, is_main
from reinforce_lite.models.policy import Policy
from reinforce_lite.pipeline import Pipeline, load_configured_policy
from reinforce_lite.runlog.run import CHECKPOINT_NAME, Run
from reinforce_lite.tasks import reward_sources, task_fingerprint
from reinforce_lite.types import Permissions
from reinforce_lite.utils.atomic import remove_folder, replace_folder
from reinforce_lite.utils.environment import package_versions
from reinforce_lite.utils.tensors import save_tensors

logger = logging.getLogger(__name__)

KEPT = 2  # the last, and the one before in case the last is damaged
STATE, META, MANIFEST = "state.safetensors", "meta.json", "manifest.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read back."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `folder`/step-N, then drop all but the last two. Raises FileError, for example on a full disk."""
    path = folder / f"step-{step}"
    with explain_file_errors("write", path):
        with replace_folder(path) as temporary:
            save_tensors(temporary / STATE, tensors)
            (temporary / META).write_text(json.dumps(meta | {"step": step}, indent=2), encoding="utf-8")
            hashes = {name: _hash(temporary / name) for name in (STATE, META)}
            (temporary / MANIFEST).write_bytes(_manifest(hashes))
        _drop_old(folder)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint. A damaged one is named and set aside, and the one before is used.

    Raises FileError for one that can't be read: it may be intact.
    """
    for step in reversed(checkpoint_steps(folder)):
        path = folder / f"step-{step}"
        with explain_file_errors("read", path):
            damaged = _damaged_file(path)
            checkpoint = None if damaged else _read(path, step)
        if checkpoint is not None:
            with explain_file_errors("write", folder):
                _drop_old(folder)  # a kill may have come before
            return checkpoint
        logger.warning(
            "%s is damaged (%s is missing or not as it was written): it is set aside as %s, which may be "
            "removed, and the one before it is used",
            *(path, damaged, _set_aside(path).name),
        )
    return None


def load_checkpoint(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step that has one; nothing is changed.

    Raises UsageError for a damaged one, FileError for one that can't be read.
    """
    path = folder / f"step-{step}"
    with explain_file_errors("read", path):
        if damaged := _damaged_file(path):
            remedy = "choose another step" if len(checkpoint_steps(folder)) > 1 else ""
            raise UsageError(f"{path} is damaged: {damaged} is missing or not as it was written", remedy)
        return _read(path, step)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order. Raises FileError where the folder can't be read."""
    with explain_file_errors("read", folder):
        names = [p.name for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(match[1]) for name in names if (match := CHECKPOINT_NAME.fullmatch(name)))


def _read(path: Path, step: int) -> Checkpoint:
    return Checkpoint(step, load_file(path / STATE), json.loads((path / META).read_bytes()))


def _drop_old(folder: Path) -> None:
    for old in checkpoint_steps(folder)[:-KEPT]:
        remove_folder(folder / f"step-{old}")


def _set_aside(path: Path) -> Path:
    """Rename a checkpoint to step-N.damaged, or step-N.damaged-2 and so on: N can be saved again."""
    names = (path.with_name(f"{path.name}.damaged{f'-{n}' if n > 1 else ''}") for n in count(1))
    with explain_file_errors("write", path):
        return path.rename(next(name for name in names if not name.exists()))


def _manifest(hashes: Mapping[str, str]) -> bytes:
    """The content of manifest.json: with these hashes there is no other, so that any change is noticed."""
    own = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    return json.dumps({"sha256": hashes, "manifest_sha256": own}, indent=2).encode()


def _damaged_file(path: Path) -> str | None:
    """The name of a checkpoint's file that is missing or not as it was written; None where all are."""
    name = MANIFEST
    try:
        for name, digest in _read_manifest(path).items():
            if _hash(path / name) != digest:
                return name
    except (ValueError, KeyError, TypeError, FileNotFoundError, NotADirectoryError):
        return name
    return None


def _read_manifest(path: Path) -> dict[str, str]:
    """The SHA-256 of each file. Raises ValueError, KeyError or TypeError for a damaged manifest."""
    if not (path / MANIFEST).exists():  # of 0.1.0, which kept the state's hash in meta.json
        return {STATE: json.loads((path / META).read_bytes())["sha256"]}
    content = (path / MANIFEST).read_bytes()
    hashes: dict[str, str] = json.loads(content)["sha256"]
    if content != _manifest(hashes):
        raise ValueError("it is not as it was written")
    return hashes


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


def check_base(policy: Policy, base: Mapping[str, str], meta: Mapping[str, Any]) -> None:
    """Raise UsageError where an adapter's checkpoint belongs to other weights than `Adapter.base_hash` found.

    Hashes of two dtypes can't be compared; older checkpoints have none.
    """
    saved = meta.get("base", {})
    if saved != base and saved.get("dtype") == base.get("dtype"):
        raise UsageError(
            f"the weights of {policy.name} have changed since this adapter was trained over them",
            "restore them, or start a new run",
        )


class Checkpointer:
    """Saves what a resumed run continues from, and restores it."""

    def __init__(self, run: Run, pipeline: Pipeline, updater: Updater) -> None:
        self.run, self.pipeline, self.updater = run, pipeline, updater
        self.folder = run.path / "checkpoints"
        self.data = task_fingerprint(pipeline.task)
        self.reward_sources = reward_sources(pipeline.task)
        self.versions = package_versions()
        adapter = pipeline.policy.adapter
        self.base = adapter.base_hash() if adapter else {}

    def save(self, progress: Progress) -> None:
        """Write the checkpoint of a step, after the logs up to that step are on the disk.

        Only the main process writes. The others take part where they hold parts of the optimizer's state.
        Raises FileError when it can't be written.
        """
        state = self.updater.state_dict()
        if not is_main():
            return
        with explain_file_errors("write", self.folder):
            self.folder.mkdir(exist_ok=True)  # now, since `sync` flushes the run's folder too
        self.run.sync()
        meta = asdict(progress) | {
            "data": self.data,
            "reward": self.reward_sources,
            "versions": self.versions,
            "base": self.base,
            "micro_batch_tokens": self.updater.micro_batch_tokens,
            "max_num_seqs": self.pipeline.engine.max_num_seqs,
        }
        save_checkpoint(self.folder, progress.step, state, meta)

    def restore(self) -> Progress:
        """Load weights, optimizer state and sizes from the last checkpoint, and rewind the logs to it.

        Sizes that were halved when memory ran out stay halved, unless the config was changed since. Raises
        UsageError where the task's problems are no longer those of the run.
        """
        checkpoint = self._latest()
        if checkpoint is None:
            if self.run.steps:
                logger.warning(
                    "%s has no checkpoint to resume from: it starts over, and the lines of its %d steps are "
                    "kept in rewound.jsonl",
                    *(self.run.path, len(self.run.steps)),
                )
            self.run.rewind(0)
            return Progress()
        meta = checkpoint.meta
        if meta["data"] != self.data:
            raise UsageError(
                f"the task's problems have changed since {self.run.path} was started",
                "restore them, or start a new run",
            )
        check_base(self.pipeline.policy, self.base, meta)
        if changed := self._changed_reward(meta.get("reward", {})):
            logger.warning(
                "the reward's code has changed since step %d: %s; rewards and accuracies before and after "
                "it can't be compared",
                *(checkpoint.step, ", ".join(changed)),
            )
        if meta["versions"] != self.versions:
            logger.warning("package versions differ from the run's: it may not continue bit for bit")
        dtype = str(self.pipeline.policy.dtype).removeprefix("torch.")
        if (before_in := self.run.machine.get("dtype", dtype)) != dtype:
            logger.warning(
                "the run was computed in %s, and continues in %s: --model.dtype %s restores the former",
                *(before_in, dtype, before_in),
            )
        self.updater.load_state_dict(checkpoint.tensors)
        before, config = self.run.config, self.pipeline.config
        if before.update.micro_batch_tokens == config.update.micro_batch_tokens:
            self.updater.micro_batch_tokens = meta["micro_batch_tokens"]
        if before.rollout.max_num_seqs == config.rollout.max_num_seqs:
            self.pipeline.engine.max_num_seqs = meta["max_num_seqs"]
        self.run.rewind(checkpoint.step)
        if missing := self.run.missing_steps(checkpoint.step):
            logger.warning(
                "%s lacks %d of the %d steps of the checkpoint: curves and warnings omit them",
                *(self.run.path / "steps.jsonl", missing, checkpoint.step),
            )
        return Progress(checkpoint.step, meta["seconds"], meta["dry_run_bytes"])

    def go_back(self, permissions: Permissions) -> int:
        """Load weights and optimizer state of the last checkpoint; without one, the model as it was.

        Returns the step of these weights. The logs are left as they are.
        """
        checkpoint = self._latest()
        if checkpoint:
            self.updater.load_state_dict(checkpoint.tensors)
            return checkpoint.step
        dtype = str(self.pipeline.policy.dtype).removeprefix("torch.")
        # On the CPU a copy has room.
        on_cpu = override_config(self.pipeline.config, {"model.device": "cpu", "model.dtype": dtype})
        self.updater.restart_from(load_configured_policy(on_cpu, permissions))
        return 0

    def _latest(self) -> Checkpoint | None:
        """The newest intact checkpoint. The main process reads it, and sends it to the others."""
        checkpoint: Checkpoint | None = None

        def read() -> tuple[int, dict[str, Any]] | None:
            nonlocal checkpoint
            checkpoint = latest_checkpoint(self.folder)
            return (checkpoint.step, checkpoint.meta) if checkpoint else None

        found = agree(read)
        if found is None:
            return None
        tensors = broadcast_tensors(checkpoint.tensors if checkpoint else None, self.updater.own_state)
        return Checkpoint(found[0], tensors, found[1])

    def _changed_reward(self, saved: Mapping[str, str]) -> list[str]:
        """The reward's source files that differ from those of a checkpoint that named them."""
        return [name for name, file in self.reward_sources.items() if saved and saved.get(name) != file]
