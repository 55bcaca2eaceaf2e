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
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import torch

from reinforce_lite.engines.base import OnProgress, ignore_progress
from reinforce_lite.engines.ending import Ending
from reinforce_lite.engines.kv_cache import KVCache
from reinforce_lite.engines.packed_linear import make_linear
from reinforce_lite.engines.sampler import finest_float, sample_tokens
from reinforce_lite.models.forward import common_prefix_length, prefix_keys_and_values
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
    """Decodes up to `max_num_seqs` sequences concurrently, with continuous batching.

    Only for a policy with `llama`, our own forward pass.
    """

    def __init__(self, policy: Policy, max_num_seqs: int = 256) -> None:
        self.policy = policy
        self.max_num_seqs = max_num_seqs

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, progress: OnProgress = ignore_progress
    ) -> list[list[Completion]]:
        """See `Engine.generate`. A sequence's draws depend on the seed, its prompt and its index alone.
        The other sequences change its rounding. That can change a token, and then all tokens after it."""
        if not prompts:
            return []
        groups = _draw_uniforms(prompts, sampling, seed)
        ending = Ending(self.policy.eos_token_ids, self.policy.decode, sampling.stop)
        scheduler = _Scheduler(self.policy, self.max_num_seqs, groups, sampling, ending)
        while scheduler.admit():
            progress(scheduler.sample())
            scheduler.decode()
        return [[ending.completion(s.token_ids, s.logprobs) for s in group] for group in groups]


def _draw_uniforms(prompts: Sequence[Prompt], sampling: Sampling, seed: int) -> list[list[_Sequence]]:
    """The sequences of each prompt, before their first token."""
    groups, repeats = [], Counter[tuple[int, ...]]()
    for prompt in prompts:
        ids = prompt.token_ids
        generator = torch.Generator().manual_seed(derive_seed(seed, f"answers to {ids}", repeats[ids]))
        repeats[ids] += 1  # so that a repeated prompt gets other completions
        shape = (sampling.samples, sampling.max_new_tokens)
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)
        groups.append([_Sequence(ids, row) for row in uniforms.tolist()])
    return groups


class _Scheduler:
    """The waiting and the running sequences of one `generate` call, with the KV cache of the running ones.

    A prompt's sequences are admitted together, in parts of at most `capacity`: its keys and values are
    computed once for each part.
    """

    def __init__(
        self,
        policy: Policy,
        max_num_seqs: int,
        groups: Sequence[Sequence[_Sequence]],
        sampling: Sampling,
        ending: Ending,
    ) -> None:
        llama, device = policy.llama, policy.device
        assert llama is not None, "the native engine does not support this model"
        llama.check_fused()
        self.policy, self.llama, self.sampling, self.ending = policy, llama, sampling, ending
        self.eos_token_ids = sorted(policy.eos_token_ids)
        prompts = [group[0].prompt for group in groups]
        n = self.prefix_length = common_prefix_length(prompts)
        self.prefix = prefix_keys_and_values(llama, prompts[0][:n]) if n else []
        longest = max(map(len, prompts)) - n
        token_bytes = 2 * len(llama.layers) * llama.kv_heads * llama.head_size * policy.dtype.itemsize
        gpu_memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        self.capacity, slots = cache_size(
            len(groups), sampling, max_num_seqs, longest, token_bytes, gpu_memory
        )
        size = min(self.capacity, sampling.samples)
        self.waiting = deque(group[i : i + size] for group in groups for i in range(0, len(group), size))
        self.linear = make_linear(llama, self.capacity)
        self.cache = KVCache(llama, self.prefix, slots, longest, self.capacity, sampling.max_new_tokens)
        self.running: list[_Sequence] = []
        self.states = policy.model.get_input_embeddings().weight.new_empty(0, policy.model.config.hidden_size)
        """(R, H): the final hidden states that predict the running sequences' next tokens.

        Valid between `admit` and `sample`; `sample` removes finished sequences, but not their states."""

    def admit(self) -> bool:
        """Prefill waiting sequences once an eighth of the capacity is free; False when all are done."""
        if self.capacity - len(self.running) >= self.capacity // 8:
            while groups := self._next_groups():
                self._prefill(groups)
        return bool(self.running)

    def _next_groups(self) -> list[Sequence[_Sequence]]:
        """Dequeue the groups that fit into the cache and into one prefill."""
        groups: list[Sequence[_Sequence]] = []
        free, slots, longest = self.capacity - len(self.running), self.cache.free_prompt_slots, 0
        while self.waiting and len(self.waiting[0]) <= free and len(groups) < slots:
            longest = max(longest, len(self.waiting[0][0].prompt) - self.prefix_length)
            if groups and (len(groups) + 1) * longest > PREFILL_TOKENS:  # attention pads prompts
                break
            groups.append(self.waiting.popleft())
            free -= len(groups[-1])
        return groups

    def _prefill(self, groups: list[Sequence[_Sequence]]) -> None:
        prompts = [group[0].prompt[self.prefix_length :] for group in groups]
        slots = [self.cache.add_prompt(len(ids)) for ids in prompts]
        tree = PrefixTree([Branch(ids) for ids in prompts], self.prefix_length, self.policy.device)
        attention = PrefixAttention(self.llama, tree, self.prefix, partial(self.cache.write_prompts, slots))
        states = self.llama(tree.ids, tree.positions, attention)[[p[-1] for p in tree.prompts]]
        for slot, group in zip(slots, groups, strict=True):
            for sequence in group:
                self.cache.add_sequence(slot)
                self.running.append(sequence)
        sizes = torch.tensor([len(group) for group in groups], device=states.device)
        repeated = states.repeat_interleave(sizes, dim=0, output_size=sum(map(len, groups)))
        self.states = torch.cat([self.states, repeated])

    def sample(self) -> int:
        """Sample one token for every running sequence; finished ones leave, and their number is returned."""
        lengths = [len(sequence.token_ids) for sequence in self.running]
        device = self.states.device
        numbers = [sequence.uniforms[n] for sequence, n in zip(self.running, lengths, strict=True)]
        uniforms = torch.tensor(numbers, dtype=finest_float(device), device=device)  # (R,)
        too_short = [n < self.sampling.min_new_tokens for n in lengths]
        forbid_eos = torch.tensor(too_short, device=device) if any(too_short) else None
        logits = final_logits(self.policy.model, self.states, self.linear).float()  # (R, V)
        tokens, logprobs = sample_tokens(logits, self.sampling, uniforms, self.eos_token_ids, forbid_eos)
        finished = []
        sampled = zip(self.running, tokens.tolist(), logprobs.tolist(), strict=True)
        for i, (sequence, token, logprob) in enumerate(sampled):
            sequence.token_ids.append(token)
            sequence.logprobs.append(logprob)
            ids = sequence.token_ids
            if len(ids) == self.sampling.max_new_tokens or self.ending.is_final(ids):
                finished.append(i)
        for i in reversed(finished):
            self.cache.remove_sequence(i)
            self.running[i] = self.running[-1]  # as in the cache, the one at the end takes its place
            self.running.pop()
        return len(finished)

    def decode(self) -> None:
        """One decoding step: the tokens just sampled to the states that predict the next ones."""
        if not self.running:
            self.states = self.states[:0]
            return
        positions = self.cache.next_positions()
        tokens = torch.tensor([s.token_ids[-1] for s in self.running], device=positions.device)
        self.states = self.llama(tokens, positions, self.cache.attend, self.linear)


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
    all layers. The same in every run on a machine.
    """
    budget = CACHE_BYTES if gpu_memory is None else CACHE_SHARE * gpu_memory
    prompt_share = min(1.0, 2 / sampling.samples)
    fitting = int(budget / token_bytes / (sampling.max_new_tokens + prompt_tokens * prompt_share))
    sequences = max(1, min(fitting, max_num_seqs, prompts * sampling.samples))
    together = min(sequences, sampling.samples)  # those of one prompt that are admitted together
    # Twice as many prompts as run in full, since some are partly finished.
    slots = min(prompts * ceil(sampling.samples / together), sequences, 2 * ceil(sequences / together))
    return sequences, slots
