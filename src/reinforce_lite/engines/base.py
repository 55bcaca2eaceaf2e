"""The engine protocol: prompts to completions.

    engine.generate(prompts, sampling, seed) -> for each prompt, its completions

A new engine is one class with this method and `max_num_seqs`; tests/engines/test_base.py states what it
must satisfy.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from reinforce_lite.types import Completion, Prompt, Sampling


def ignore_progress(finished: int) -> None:
    """The default progress callback: does nothing."""


class Engine(Protocol):
    """Samples completions from the policy's current weights."""

    max_num_seqs: int
    """Upper limit of sequences decoded concurrently."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] = ignore_progress,
    ) -> list[list[Completion]]:
        """Sample `sampling.samples` completions for each prompt, in the order of the prompts.

        The same weights, prompts, sampling and seed give the same completions. `progress` is called with
        the number of completions finished since its previous call.
        """
        ...


def cut_at_eos(token_ids: Sequence[int], eos_token_ids: frozenset[int]) -> tuple[tuple[int, ...], bool]:
    """The ids up to and including the first EOS token, and whether the sequence is truncated (has none).

    What follows the first EOS is padding and is never inspected: it may be the EOS token itself.
    """
    for position, token in enumerate(token_ids):
        if token in eos_token_ids:
            return tuple(token_ids[: position + 1]), False
    return tuple(token_ids), True


def make_completion(
    token_ids: tuple[int, ...],
    truncated: bool,
    logprobs: Sequence[float],
    decode: Callable[[Sequence[int]], str],
) -> Completion:
    """Build a completion from its ids (with EOS) and at least as many log-probabilities; text omits EOS."""
    text = decode(token_ids if truncated else token_ids[:-1])
    return Completion(token_ids, text, truncated, tuple(logprobs[: len(token_ids)]))
