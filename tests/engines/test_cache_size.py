"""How many sequences the KV cache holds."""

import pytest

from reinforce_lite.engines.cache_size import cache_size
from reinforce_lite.types import Sampling


@pytest.mark.parametrize(
    ("prompts", "samples", "max_num_seqs", "token_bytes", "expected"),
    [
        (8, 10, 256, 1, (80, 8)),  # everything
        (100, 10, 40, 1, (40, 8)),  # 4 groups run in full, and as many may be partly finished
        (3, 100, 40, 1, (40, 2)),  # a group in three parts, one at a time
        (50, 1, 16, 1, (16, 16)),  # never more prompts than sequences
        (50, 1, 999, 10**6, (48, 48)),  # 768 MB are 48 sequences of 10 tokens with prompts of 6
        (100, 10, 999, 10**6, (68, 14)),  # the same with a fifth of a prompt for each: 68 x 11.2 = 762
    ],
)
def test_cache_size_by_hand(
    prompts: int, samples: int, max_num_seqs: int, token_bytes: int, expected: tuple[int, int]
) -> None:
    """With 768 MB for the cache, or an eighth of a GPU's memory."""
    sampling = Sampling(samples, max_new_tokens=10)
    for gpu_memory in (None, 8 * 768 * 10**6):
        assert cache_size(prompts, sampling, max_num_seqs, 6, token_bytes, gpu_memory) == expected
