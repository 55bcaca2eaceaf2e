"""The sequences that a native engine decodes, and the draw of their next tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reinforce_lite.engines.sampler import finest_float, sample_tokens
from reinforce_lite.models.logprobs import final_logits
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.projection import Linear
from reinforce_lite.types import Prompt, Sampling
from reinforce_lite.utils.seeding import derive_seed


@dataclass(slots=True)
class SampledSequence:
    """A prompt, and the completion that is generated after it."""

    prompt: tuple[int, ...]
    uniforms: list[float]
    """max_new_tokens numbers in [0, 1), one per token."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def group_seeds(prompts: Sequence[Prompt], seed: int) -> list[int]:
    """A seed for the completions of each prompt, whatever the other prompts are; a repeat has its own."""
    seeds, repeats = [], Counter[tuple[int, ...]]()
    for prompt in prompts:
        seeds.append(derive_seed(seed, f"answers to {prompt.token_ids}", repeats[prompt.token_ids]))
        repeats[prompt.token_ids] += 1
    return seeds


def start_sequences(prompts: Sequence[Prompt], sampling: Sampling, seed: int) -> list[list[SampledSequence]]:
    """The sequences of each prompt, still empty, with their random numbers."""
    groups = []
    for prompt, group_seed in zip(prompts, group_seeds(prompts, seed), strict=True):
        generator = torch.Generator().manual_seed(group_seed)
        shape = (sampling.samples, sampling.max_new_tokens)
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)
        groups.append([SampledSequence(prompt.token_ids, row) for row in uniforms.tolist()])
    return groups


def append_tokens(
    policy: Policy,
    sequences: Sequence[SampledSequence],
    states: Tensor,
    sampling: Sampling,
    linear: Linear | None = None,
) -> None:
    """Draw the next token of each sequence from the (R, H) states that predict them."""
    lengths = [len(sequence.token_ids) for sequence in sequences]
    device = states.device
    numbers = [sequence.uniforms[n] for sequence, n in zip(sequences, lengths, strict=True)]
    uniforms = torch.tensor(numbers, dtype=finest_float(device), device=device)  # (R,)
    too_short = [n < sampling.min_new_tokens for n in lengths]
    forbid_eos = torch.tensor(too_short, device=device) if any(too_short) else None
    logits = final_logits(policy.model, states, linear).float()  # (R, V)
    drawn = sample_tokens(logits, sampling, uniforms, sorted(policy.eos_token_ids), forbid_eos)
    tokens, logprobs = (values.tolist() for values in drawn)
    for sequence, token, logprob in zip(sequences, tokens, logprobs, strict=True):
        sequence.token_ids.append(token)
        sequence.logprobs.append(logprob)
