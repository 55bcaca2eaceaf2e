"""An engine that makes do with less memory: when it runs out, the same answers with fewer at once."""

import logging
from collections.abc import Callable, Sequence

from reinforce_lite.engines.base import Engine, ignore_progress
from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.types import Completion, Prompt, Sampling
from reinforce_lite.utils.memory import retry_on_oom

logger = logging.getLogger(__name__)


class OOMRetryEngine:
    """Wraps another engine, and keeps to fewer from then on. A native answer's draws do not depend on what
    else is in flight, so that this changes rounding alone; those of `hf` do, and are other answers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def max_num_seqs(self) -> int:
        """See `Engine`."""
        return self.engine.max_num_seqs

    @max_num_seqs.setter
    def max_num_seqs(self, max_num_seqs: int) -> None:
        self.engine.max_num_seqs = max_num_seqs

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] = ignore_progress,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Raises WontFit when one answer at a time is too much."""
        done = 0

        def count(finished: int) -> None:
            nonlocal done
            done += finished
            progress(finished)

        def smaller() -> None:
            count(-done)
            self._halve(len(prompts) * sampling.samples)

        return retry_on_oom(lambda: self.engine.generate(prompts, sampling, seed, count), smaller)

    def _halve(self, asked: int) -> None:
        flying = min(self.max_num_seqs, asked)
        if flying == 1:
            raise DoesNotFitError("a single answer does not fit into memory", "see: reinforce-lite plan")
        self.max_num_seqs = flying // 2
        logger.warning(
            "memory ran out while answering: the same answers again, %d at once", self.max_num_seqs
        )
