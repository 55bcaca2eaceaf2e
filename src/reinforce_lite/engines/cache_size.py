"""How much memory the KV cache gets, and how many sequences are then decoded concurrently.

Both are the same in every run on a machine: with another number of sequences results round differently.
"""

from math import ceil

import torch

from reinforce_lite.types import Sampling

CACHE_BYTES = 768 * 10**6
"""KV cache without a CUDA device, in bytes."""
CACHE_SHARE = 0.125
"""KV cache on a CUDA device, as a share of its memory."""
KEPT_SHARE = 0.25
"""Up to this share of the above, a CUDA device's cache stays allocated while the policy is trained."""


def read_gpu_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's whole memory; None elsewhere."""
    is_cuda = device.type == "cuda"
    return int(torch.cuda.get_device_properties(device).total_memory) if is_cuda else None


def cache_bytes(gpu_memory: int | None) -> float:
    """The most that the KV cache takes, on a GPU with this memory or without one."""
    return CACHE_BYTES if gpu_memory is None else CACHE_SHARE * gpu_memory


def cache_size(
    prompts: int,
    sampling: Sampling,
    max_num_seqs: int,
    prompt_tokens: int,
    token_bytes: int,
    gpu_memory: int | None,
) -> tuple[int, int]:
    """How many sequences are decoded concurrently, and how many prompts are kept in the cache for them.

    Prompts have up to `prompt_tokens` tokens; `token_bytes` is the size of one token's keys and values in
    all layers.
    """
    budget = cache_bytes(gpu_memory)
    prompt_share = min(1.0, 2 / sampling.samples)
    fitting = int(budget / token_bytes / (sampling.max_new_tokens + prompt_tokens * prompt_share))
    sequences = max(1, min(fitting, max_num_seqs, prompts * sampling.samples))
    together = min(sequences, sampling.samples)  # those of one prompt that are admitted together
    # Twice as many prompts as run in full, since some are partly finished.
    slots = min(prompts * ceil(sampling.samples / together), sequences, 2 * ceil(sequences / together))
    return sequences, slots
