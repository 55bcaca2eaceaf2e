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

        The same weights, prompts, sampling and seed give the same completions.
        """
        ...


def make_completion(
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    eos_token_ids: frozenset[int],
    decode: Callable[[Sequence[int]], str],
) -> Completion:
    """Build a completion from sampled tokens; it is truncated if it has no EOS token.

    What follows the first EOS is padding and is never inspected: it may be the EOS token itself.
    """
    length = next((i for i, token in enumerate(token_ids) if token in eos_token_ids), len(token_ids))
    ids = tuple(token_ids[: length + 1])  # with EOS; the text omits it
    text = decode(token_ids[:length])
    return Completion(ids, text, length == len(token_ids), tuple(logprobs[: len(ids)]))
