"""What an engine is: weights and prompts to completions.

    engine.generate(prompts, sampling, seed) -> for each prompt, its completions

A new engine is one class with this one method; `tests/test_engines.py` says what it must hold.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from reinforce_lite.types import Completion, Prompt, Sampling


def ignore_progress(finished: int) -> None:
    """The default listener: hears of finished completions and does nothing."""


class Engine(Protocol):
    """Draws completions from the policy as it is at this moment."""

    max_num_seqs: int
    """Answers in flight at most."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] = ignore_progress,
    ) -> list[list[Completion]]:
        """`sampling.samples` completions for each prompt, in order.

        The same weights, prompts, sampling and seed give the same completions. `progress` is
        called with the number of completions that have finished since it was called last.
        """
        ...


def cut_at_eos(token_ids: Sequence[int], eos_token_ids: frozenset[int]) -> tuple[tuple[int, ...], bool]:
    """The ids up to and with the first end token, and whether there was none.

    What follows the end is padding, which is never looked at: it may be the end token itself.
    """
    for place, token in enumerate(token_ids):
        if token in eos_token_ids:
            return tuple(token_ids[: place + 1]), False
    return tuple(token_ids), True


def make_completion(
    token_ids: tuple[int, ...],
    truncated: bool,
    logprobs: Sequence[float],
    decode: Callable[[Sequence[int]], str],
) -> Completion:
    """A completion of these ids: its text leaves the end token out."""
    text = decode(token_ids if truncated else token_ids[:-1])
    return Completion(token_ids, text, truncated, tuple(logprobs[: len(token_ids)]))
