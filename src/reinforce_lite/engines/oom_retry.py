"""An engine that makes do with less memory: when it runs out, the same answers with fewer at once."""

import logging
from collections.abc import Callable, Sequence

from reinforce_lite.engines.base import Engine, nobody
from reinforce_lite.errors import WontFit
from reinforce_lite.types import Completion, Prompt, Sampling
from reinforce_lite.utils import memory

logger = logging.getLogger(__name__)


class Recovering:
    """Wraps another engine, and keeps to fewer from then on. A native answer's draws do not depend on what
    else is in flight, so that this changes rounding alone; those of `hf` do, and are other answers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def rows(self) -> int:
        """See `Engine`."""
        return self.engine.rows

    @rows.setter
    def rows(self, rows: int) -> None:
        self.engine.rows = rows

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] = nobody,
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

        return memory.until_it_fits(lambda: self.engine.generate(prompts, sampling, seed, count), smaller)

    def _halve(self, asked: int) -> None:
        flying = min(self.rows, asked)
        if flying == 1:
            raise WontFit("a single answer does not fit into memory", "see: reinforce-lite plan")
        self.rows = flying // 2
        logger.warning("memory ran out while answering: the same answers again, %d at once", self.rows)
