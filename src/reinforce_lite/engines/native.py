"""Our own decoder over the policy's own weights: one copy, so sampler and trainer can't drift apart.

What makes it faster than transformers' `generate`, the largest saving on a CPU first:

- the prefix that all prompts share (worked examples) and each prompt are computed once, by the same prefix
  tree as the update (`prefix_tree.py`), and all sequences attend to the same keys and values (`kv_cache.py`);
- a sequence's keys and values go into memory that is allocated once and never copied;
- weights are packed once for the matrix products of all decoding steps (`packed_linear.py`);
- sampling sorts a few dozen likely tokens instead of the vocabulary, and is still exact (`sampler.py`);
- continuous batching: a finished sequence leaves, and a waiting one takes its place.

It runs the families that `llama.py` knows. Any other model goes through `hf`.

Shapes: R running sequences, H hidden size, V vocabulary.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import torch
from torch import Tensor

from reinforce_lite.engines.base import cut_at_eos, ignore_progress, make_completion
from reinforce_lite.engines.kv_cache import KVCache
from reinforce_lite.engines.packed_linear import make_linear
from reinforce_lite.engines.sampler import finest_float, sample_tokens
from reinforce_lite.models.forward import common_prefix_length
from reinforce_lite.models.logprobs import final_logits
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, PrefixTree
from reinforce_lite.types import Completion, Prompt, Sampling
from reinforce_lite.utils.seeding import derive_seed

CACHE_BYTES = 768 * 10**6
"""KV cache without a CUDA device, in bytes."""
CACHE_SHARE = 0.125
"""KV cache on a CUDA device, as a share of its memory."""
PREFILL_TOKENS = 2048
"""Upper limit of prompt tokens, padding included, in one prefill of several prompts."""


@dataclass(slots=True)
class _Sequence:
    """A completion being generated."""

    prompt: tuple[int, ...]
    uniforms: list[float]
    """max_new_tokens numbers in [0, 1), one per token."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class NativeEngine:
    """Decodes up to `max_num_seqs` sequences concurrently, with continuous batching."""

    def __init__(self, policy: Policy, max_num_seqs: int = 256) -> None:
        """Raises ValueError for a model that `llama.py` does not know."""
        if policy.llama is None:
            raise ValueError(f"the native engine does not support {policy.model.config.model_type} models")
        self.policy = policy
        self.max_num_seqs = max_num_seqs

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] = ignore_progress,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. A sequence's draws depend on the seed, its prompt and its index alone.
        The other sequences change its rounding. That can change a token, and then all tokens after it."""
        if not prompts:
            return []
        self.policy.check_fused()
        groups = self._groups(prompts, sampling, seed)
        scheduler = _Scheduler(self.policy, self.max_num_seqs, groups, sampling)
        while scheduler.admit():
            progress(scheduler.sample())
            scheduler.decode()
        return [[self._completion(sequence) for sequence in group] for group in groups]

    def _groups(self, prompts: Sequence[Prompt], sampling: Sampling, seed: int) -> list[list[_Sequence]]:
        groups, repeats = [], Counter[tuple[int, ...]]()
        for prompt in prompts:
            ids = prompt.token_ids
            generator = torch.Generator().manual_seed(derive_seed(seed, f"answers to {ids}", repeats[ids]))
            repeats[ids] += 1  # so that a repeated prompt gets other completions
            shape = (sampling.samples, sampling.max_new_tokens)
            uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)
            groups.append([_Sequence(ids, row) for row in uniforms.tolist()])
        return groups

    def _completion(self, sequence: _Sequence) -> Completion:
        ids, truncated = cut_at_eos(sequence.token_ids, self.policy.eos_token_ids)
        return make_completion(ids, truncated, sequence.logprobs, self.policy.decode)


class _Scheduler:
    """The waiting and the running sequences of one `generate` call, with the KV cache of the running ones.

    A prompt's sequences are admitted together, in parts of at most `capacity`: its keys and values are
    computed once for each part.
    """

    def __init__(
        self, policy: Policy, max_num_seqs: int, groups: Sequence[Sequence[_Sequence]], sampling: Sampling
    ) -> None:
        assert policy.llama is not None
        self.policy, self.llama, self.sampling = policy, policy.llama, sampling
        self.eos_token_ids = sorted(policy.eos_token_ids)
        prompts = [group[0].prompt for group in groups]
        self.prefix_length = common_prefix_length(prompts)
        self.prefix: list[Tensor] = []
        if self.prefix_length:
            prefix: list[Tensor] = []
            self._forward([prompts[0][: self.prefix_length]], 0, lambda _, kv: prefix.append(kv))
            self.prefix = prefix
        longest = max(map(len, prompts)) - self.prefix_length
        capacity = min(max_num_seqs, _cache_capacity(policy, sampling, longest))
        size = min(capacity, sampling.samples)
        self.waiting = deque(group[i : i + size] for group in groups for i in range(0, len(group), size))
        self.capacity = min(capacity, sum(map(len, groups)))
        self.linear = make_linear(self.llama, self.capacity)
        slots = prompt_slots(len(groups), sampling.samples, self.capacity)
        self.cache = KVCache(self.llama, self.prefix, slots, longest, self.capacity, sampling.max_new_tokens)
        self.running: list[_Sequence] = []
        self.states = policy.model.get_input_embeddings().weight.new_empty(0, policy.model.config.hidden_size)
        """(R, H): the final hidden states that predict the running sequences' next tokens.

        Valid between `admit` and `sample`; `sample` removes finished sequences, but not their states."""

    def admit(self) -> bool:
        """Prefill waiting sequences once an eighth of the capacity is free; False when all are done."""
        if self.waiting and (not self.running or self.capacity - len(self.running) >= self.capacity // 8):
            while groups := self._next_groups():
                self._prefill(groups)
        return bool(self.running)

    def _next_groups(self) -> list[list[_Sequence]]:
        """Dequeue the groups that fit into the cache and into one prefill."""
        groups: list[list[_Sequence]] = []
        free, slots, longest = self.capacity - len(self.running), self.cache.free_prompt_slots, 0
        while self.waiting and len(self.waiting[0]) <= free and len(groups) < slots:
            longest = max(longest, len(self.waiting[0][0].prompt) - self.prefix_length)
            if groups and (len(groups) + 1) * longest > PREFILL_TOKENS:  # attention pads prompts
                break
            groups.append(list(self.waiting.popleft()))
            free -= len(groups[-1])
        return groups

    def _prefill(self, groups: list[list[_Sequence]]) -> None:
        prompts = [group[0].prompt[self.prefix_length :] for group in groups]
        slots = [self.cache.add_prompt(len(ids)) for ids in prompts]
        states = self._forward(prompts, self.prefix_length, partial(self.cache.write_prompts, slots))
        for slot, group in zip(slots, groups, strict=True):
            for sequence in group:
                self.cache.add_sequence(slot)
                self.running.append(sequence)
        sizes = torch.tensor([len(group) for group in groups], device=states.device)
        self.states = torch.cat([self.states, states.repeat_interleave(sizes, dim=0)])

    def _forward(
        self, prompts: Sequence[Sequence[int]], start: int, keep: Callable[[int, Tensor], None]
    ) -> Tensor:
        """(prompts, H): the state at the end of each; `keep` receives each layer's keys and values."""
        tree = PrefixTree([Branch(ids) for ids in prompts], start, self.policy.device)
        attention = PrefixAttention(self.llama, tree, self.prefix, keep)
        return self.llama(tree.ids, tree.positions, attention)[[p[-1] for p in tree.prompts]]

    def sample(self) -> int:
        """Sample one token for every running sequence; finished ones leave, and their number is returned."""
        lengths = [len(sequence.token_ids) for sequence in self.running]
        device = self.states.device
        numbers = [sequence.uniforms[n] for sequence, n in zip(self.running, lengths, strict=True)]
        uniforms = torch.tensor(numbers, dtype=finest_float(device), device=device)  # (R,)
        forbid_eos = torch.tensor([n < self.sampling.min_new_tokens for n in lengths], device=device)
        logits = final_logits(self.policy.model, self.states, self.linear).float()  # (R, V)
        tokens, logprobs = sample_tokens(logits, self.sampling, uniforms, self.eos_token_ids, forbid_eos)
        for sequence, token, logprob in zip(self.running, tokens.tolist(), logprobs.tolist(), strict=True):
            sequence.token_ids.append(token)
            sequence.logprobs.append(logprob)
        finished = [i for i, sequence in enumerate(self.running) if self._is_finished(sequence)]
        for i in reversed(finished):
            self.cache.remove_sequence(i)
            self.running[i] = self.running[-1]  # as in the cache, the one at the end takes its place
            self.running.pop()
        return len(finished)

    def _is_finished(self, sequence: _Sequence) -> bool:
        ids = sequence.token_ids
        return ids[-1] in self.eos_token_ids or len(ids) == self.sampling.max_new_tokens

    def decode(self) -> None:
        """One decoding step: the tokens just sampled to the states that predict the next ones."""
        if not self.running:
            self.states = self.states[:0]
            return
        positions = self.cache.next_positions()
        tokens = torch.tensor([s.token_ids[-1] for s in self.running], device=positions.device)
        self.states = self.llama(tokens, positions, self.cache.attend, self.linear)


def _cache_capacity(policy: Policy, sampling: Sampling, longest: int) -> int:
    """How many sequences the cache's memory holds; the same in every run on a machine."""
    assert policy.llama is not None
    llama, device = policy.llama, policy.device
    device_bytes = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    token_bytes = 2 * len(llama.layers) * llama.kv_heads * llama.head_size * policy.dtype.itemsize
    return sequences_that_fit(cache_budget(device_bytes), token_bytes, sampling, longest)


def cache_budget(device_bytes: int | None) -> float:
    """The cache's bytes: a share of a CUDA device's memory, elsewhere (None) a fixed number."""
    return float(CACHE_BYTES) if device_bytes is None else CACHE_SHARE * device_bytes


def sequences_that_fit(budget: float, token_bytes: int, sampling: Sampling, longest: int) -> int:
    """How many sequences fit into `budget` bytes together with their prompts of up to `longest` tokens;
    `token_bytes` is the size of one token's keys and values in all layers."""
    prompt_share = min(1.0, 2 / sampling.samples)
    return max(1, int(budget / token_bytes / (sampling.max_new_tokens + longest * prompt_share)))


def prompt_slots(groups: int, samples: int, max_num_seqs: int) -> int:
    """How many prompts to keep in the cache with `max_num_seqs` sequences, `samples` to each prompt."""
    size = min(max_num_seqs, samples)  # sequences that are admitted together
    # Twice as many groups as run in full, since some are partly finished.
    return min(groups * ceil(samples / size), max_num_seqs, 2 * ceil(max_num_seqs / size))


def cache_plan(
    prompts: int,
    sampling: Sampling,
    max_num_seqs: int,
    prompt_tokens: int,
    token_bytes: int,
    gpu_memory: int | None,
) -> tuple[int, int]:
    """Sequences that `generate` decodes concurrently, and the bytes of its KV cache, for prompts of up to
    `prompt_tokens` tokens; `token_bytes` are those of one token's keys and values."""
    fitting = sequences_that_fit(cache_budget(gpu_memory), token_bytes, sampling, prompt_tokens)
    sequences = min(max_num_seqs, fitting, prompts * sampling.samples)
    slots = prompt_slots(prompts, sampling.samples, sequences)
    return sequences, token_bytes * (slots * prompt_tokens + sequences * sampling.max_new_tokens)
