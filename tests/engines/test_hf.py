"""The hf engine's own parts; test_base.py has what it shares with the others."""

import torch

from reinforce_lite.engines.hf import HFEngine, _pad_left
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Prompt, Sampling


def test_pad_left_by_hand() -> None:
    ids, mask = _pad_left([(5, 6, 7), (8,)], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_more_samples_than_max_num_seqs_are_split(policy: Policy) -> None:
    progress: list[int] = []
    sampling = Sampling(samples=5, max_new_tokens=3)
    groups = HFEngine(policy, max_num_seqs=2).generate(
        [Prompt((1, 40)), Prompt((1, 50))], sampling, 0, progress.append
    )
    assert [len(group) for group in groups] == [5, 5]
    assert progress == [2, 2, 1] * 2
