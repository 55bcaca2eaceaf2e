"""The engine protocol: prompts to completions.

    engine.generate(prompts, sampling, seed) -> for each prompt, its completions

A new engine is one class with this method and `max_num_seqs`; tests/engines/test_base.py states what it
must satisfy.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from reinforce_lite.types import Completion, Prompt, Sampling

OnProgress = Callable[[int], None]
"""Called with the number of completions finished since its previous call; negative if some are discarded."""


def ignore_progress(finished: int) -> None:
    """The default: does nothing."""


class Engine(Protocol):
    """Samples completions from the policy's current weights."""

    max_num_seqs: int
    """Upper limit of sequences decoded concurrently."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, progress: OnProgress = ignore_progress
    ) -> list[list[Completion]]:
        """Sample `sampling.samples` completions for each prompt, in the order of the prompts.

        A completion ends with an EOS token, where its text reaches one of `sampling.stop`, or where it
        repeats itself (`ending.py`).
        The same weights, prompts, sampling and seed give the same completions.
        """
        ...
