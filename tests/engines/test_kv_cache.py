"""Slots and positions of the cache by hand; test_native.py checks its attention against transformers."""

from typing import Any

import pytest
import torch

from reinforce_lite.engines.kv_cache import KVCache
from reinforce_lite.models.policy import Policy

PREFIX_LENGTH = 4


@pytest.fixture
def cache(policy: Policy) -> Any:
    """Prompts of 3, 1 and 2 tokens after a prefix of 4; sequences 0 and 1 of the first, 2 and 3 of the others."""
    llama = policy.llama
    assert llama is not None
    width = 2 * llama.kv_heads * llama.head_size
    prefix = [torch.zeros(PREFIX_LENGTH, width) for _ in llama.layers]
    cache = KVCache(llama, prefix, prompts=4, longest=3, sequences=6, width=5)
    assert [cache.add_prompt(n) for n in (3, 1, 2)] == [0, 1, 2]
    kv = torch.arange(6.0)[:, None].expand(-1, width)  # token t has keys and values of t
    cache.write_prompts([0, 1, 2], 0, kv)
    for slot in (0, 0, 1, 2):
        cache.add_sequence(slot)
    return cache


def prompt_tokens(cache: KVCache, slot: int) -> list[float]:
    """The first layer's values in a slot, up to its prompt's length."""
    return cache.prompts[0, 1, slot, 0, : cache.prompt_lengths[slot], 0].tolist()


def test_positions_continue_prefix_prompt_and_sequence(cache: KVCache) -> None:
    assert cache.free_prompt_slots == 1
    assert cache.next_positions().tolist() == [7, 7, 5, 6]
    cache.add_sequence(1)  # admitted one step later
    assert cache.next_positions().tolist() == [8, 8, 6, 7, 5]


def test_prompts_are_written_to_their_slots(cache: KVCache) -> None:
    assert [prompt_tokens(cache, slot) for slot in range(3)] == [[0, 1, 2], [3], [4, 5]]


def test_removed_sequence_is_replaced_by_the_last(cache: KVCache) -> None:
    cache.next_positions()
    cache.sequences[0, 1, :4, 0, 0, 0] = torch.tensor([10.0, 11.0, 12.0, 13.0])
    cache.remove_sequence(0)
    assert cache.slots == [2, 0, 1]
    assert cache.sequences[0, 1, :3, 0, 0, 0].tolist() == [13, 11, 12]
    assert cache.free_prompt_slots == 1  # sequence 1 still needs its prompt


def test_prompt_leaves_with_its_last_sequence(cache: KVCache) -> None:
    cache.remove_sequence(2)  # the only one of slot 1; the last prompt takes the slot
    assert cache.slots == [0, 0, 1]
    assert [prompt_tokens(cache, slot) for slot in range(2)] == [[0, 1, 2], [4, 5]]
    assert cache.free_prompt_slots == 2
    assert cache.next_positions().tolist() == [7, 7, 6]
