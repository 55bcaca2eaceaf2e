"""Retry after running out of memory: the same completions, with fewer sequences decoded concurrently."""

import logging
from collections.abc import Sequence

from reinforce_lite.engines.base import Engine, OnProgress, ignore_progress
from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.types import Completion, Prompt, Sampling
from reinforce_lite.utils.memory import retry_on_oom

logger = logging.getLogger(__name__)


class OOMRetryEngine:
    """Wraps another engine and halves its `max_num_seqs`, for good, each time memory runs out.

    A native sequence's draws do not depend on what else runs, so a retry changes rounding alone. Draws of
    `hf` do depend on the batch, so a retry gives other completions.
    """

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
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, progress: OnProgress = ignore_progress
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Raises DoesNotFitError when even one sequence at a time is too much."""
        finished = 0

        def count(newly_finished: int) -> None:
            nonlocal finished
            finished += newly_finished
            progress(newly_finished)

        def shrink() -> None:
            count(-finished)  # the retry starts over
            running = min(self.max_num_seqs, len(prompts) * sampling.samples)
            if running == 1:
                raise DoesNotFitError(
                    "sampling a single sequence does not fit into memory",
                    "lower rollout.max_new_tokens or prompt.max_tokens, or choose a smaller model",
                )
            self.max_num_seqs = running // 2
            logger.warning("out of memory while sampling: retrying with max_num_seqs %d", self.max_num_seqs)

        return retry_on_oom(lambda: self.engine.generate(prompts, sampling, seed, count), shrink)
