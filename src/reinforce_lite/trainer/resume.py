"""Going on with a run: what a checkpoint says beside its tensors, written and read in one place."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reinforce_lite import config
from reinforce_lite.engines.base import Engine
from reinforce_lite.errors import UsageError
from reinforce_lite.learner.updater import Updater
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer import checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """The last step that a checkpoint holds; 0: none does."""
    seconds: float = 0.0
    """Spent up to there."""
    probe_bytes: int | None = None
    """The peak of the largest step, which is tried before the first; None: it was not tried."""


@dataclass(frozen=True, slots=True)
class Resuming:
    """Says what a checkpoint says of the run, and brings a run back to it."""

    run: Run
    config: config.Config
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
            "memory/answers_in_flight": self.engine.rows,
        }

    def meta(self, seconds: float, probe_bytes: int | None) -> dict[str, Any]:
        """What a checkpoint says of a run that has taken so long."""
        said = {"data": self.data, "seconds": seconds, "versions": self.versions}
        return said | {"probe_bytes": probe_bytes, "at_once": self.at_once}

    def resume(self) -> Progress:
        """Take weights, optimizer state and sizes from the last checkpoint, and the logs back to it.

        Raises UsageError where the task's problems are no longer those of the run.
        """
        found = checkpoint.latest(self.run.path / "checkpoints")
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
        self.updater.load(found.tensors)
        self._go_on_as_small(found.meta.get("at_once", {}))
        self.run.rewind(found.step)
        return Progress(found.step, found.meta["seconds"], found.meta.get("probe_bytes"))

    def _go_on_as_small(self, at_once: Mapping[str, int]) -> None:
        """As the checkpoint was left, but where the config has another size now."""

        def same(key: str) -> bool:
            return bool(config.value(self.run.config, key) == config.value(self.config, key))

        if at_once and same("update.micro_batch_tokens"):
            self.updater.micro_batch_tokens = at_once["memory/micro_batch_tokens"]
        if at_once and same("rollout.answers_in_flight"):
            self.engine.rows = at_once["memory/answers_in_flight"]
