"""Retries after running out of memory, with an engine that fails above a given number of sequences."""

import logging
from collections.abc import Callable, Sequence

import pytest
import torch

from helpers.tiny import END, make_tokenizer
from reinforce_lite.engines.oom_retry import OOMRetryEngine
from reinforce_lite.engines.scripted import ScriptedEngine
from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.types import Completion, Prompt, Sampling

PROMPTS = [Prompt((10, 11)), Prompt((12, 13))]
SAMPLING = Sampling(samples=3, max_new_tokens=2)


class Limited(ScriptedEngine):
    """Finishes one completion, and then runs out of memory above `limit` sequences."""

    def __init__(self, limit: int) -> None:
        super().__init__(make_tokenizer(), END, lambda prompt, sample: str(sample))
        self.limit = limit

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] = print,
    ) -> list[list[Completion]]:
        if self.max_num_seqs > self.limit:
            progress(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().generate(prompts, sampling, seed, progress)


def test_oom_halves_max_num_seqs_from_what_was_requested(caplog: pytest.LogCaptureFixture) -> None:
    """6 sequences of 256 possible: 3, then 1; and it stays so."""
    engine = OOMRetryEngine(Limited(2))
    with caplog.at_level(logging.WARNING):
        groups = engine.generate(PROMPTS, SAMPLING, seed=0)
    assert [[c.text for c in group] for group in groups] == [["0", "1", "2"]] * 2
    assert engine.max_num_seqs == 1
    assert [record.args for record in caplog.records] == [(3,), (1,)]
    caplog.clear()
    engine.generate(PROMPTS, SAMPLING, seed=0)
    assert not caplog.records


def test_progress_of_a_failed_try_is_taken_back() -> None:
    progress: list[int] = []
    OOMRetryEngine(Limited(3)).generate(PROMPTS, SAMPLING, 0, progress.append)
    assert progress[:2] == [1, -1]
    assert sum(progress) == 6


def test_a_single_sequence_that_does_not_fit_raises() -> None:
    with pytest.raises(DoesNotFitError):
        OOMRetryEngine(Limited(0)).generate(PROMPTS, SAMPLING, seed=0)
