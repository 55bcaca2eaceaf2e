"""Continuous batching where a step has as many rows as there are running sequences: on every device but CUDA.

A finished sequence leaves, and a waiting one takes its place. On a CUDA device rows are fixed
(`static_scheduler.py`).

Shapes: R running sequences, H hidden size.
"""

from collections import deque
from collections.abc import Sequence
from functools import partial

import torch

from reinforce_lite.engines.base import OnProgress
from reinforce_lite.engines.cache_size import cache_size, read_gpu_memory
from reinforce_lite.engines.ending import Ending
from reinforce_lite.engines.kv_cache import KVCache, token_kv_bytes
from reinforce_lite.engines.packed_linear import make_linear
from reinforce_lite.engines.sequence import SampledSequence, append_tokens
from reinforce_lite.models.forward import common_prefix_length, prefix_keys_and_values
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, PrefixTree
from reinforce_lite.types import Sampling

PADDED_PREFILL_TOKENS = 2048
"""Upper limit of prompt tokens in one prefill of several prompts, padding included: attention pads them."""


class Scheduler:
    """The waiting and the running sequences of one `generate` call, with the KV cache of the running ones.

    A prompt's sequences are admitted together, in parts of at most `capacity`: its keys and values are
    computed once for each part.
    """

    def __init__(
        self,
        policy: Policy,
        max_num_seqs: int,
        groups: Sequence[Sequence[SampledSequence]],
        sampling: Sampling,
        ending: Ending,
    ) -> None:
        llama = policy.llama
        assert llama is not None
        self.policy, self.llama, self.sampling, self.ending = policy, llama, sampling, ending
        prompts = [group[0].prompt for group in groups]
        n = self.prefix_length = common_prefix_length(prompts)
        self.prefix = prefix_keys_and_values(llama, prompts[0][:n]) if n else []
        longest = max(map(len, prompts)) - n
        self.capacity, slots = cache_size(
            len(groups),
            sampling,
            max_num_seqs,
            longest,
            token_kv_bytes(policy.model.config, policy.dtype.itemsize),
            read_gpu_memory(policy.device),
        )
        size = min(self.capacity, sampling.samples)
        self.waiting = deque(group[i : i + size] for group in groups for i in range(0, len(group), size))
        self.linear = make_linear(llama, self.capacity)
        self.cache = KVCache(llama, self.prefix, slots, longest, self.capacity, sampling.max_new_tokens)
        self.running: list[SampledSequence] = []
        self.states = policy.model.get_input_embeddings().weight.new_empty(0, policy.model.config.hidden_size)
        """(R, H): the final hidden states that predict the running sequences' next tokens.

        Valid between `admit` and `sample`; `sample` removes finished sequences, but not their states."""

    def run(self, progress: OnProgress) -> None:
        """Decode all sequences to their ends."""
        while self.admit():
            progress(self.sample())
            self.decode()

    def admit(self) -> bool:
        """Prefill waiting sequences once an eighth of the capacity is free; False when all are done."""
        if self.capacity - len(self.running) >= self.capacity // 8:
            while groups := self._next_groups():
                self._prefill(groups)
        return bool(self.running)

    def _next_groups(self) -> list[Sequence[SampledSequence]]:
        """Dequeue the groups that fit into the cache and into one prefill."""
        groups: list[Sequence[SampledSequence]] = []
        free, slots, longest = self.capacity - len(self.running), self.cache.free_prompt_slots, 0
        while self.waiting and len(self.waiting[0]) <= free and len(groups) < slots:
            longest = max(longest, len(self.waiting[0][0].prompt) - self.prefix_length)
            if groups and (len(groups) + 1) * longest > PADDED_PREFILL_TOKENS:
                break
            groups.append(self.waiting.popleft())
            free -= len(groups[-1])
        return groups

    def _prefill(self, groups: list[Sequence[SampledSequence]]) -> None:
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
        append_tokens(self.policy, self.running, self.states, self.sampling, self.linear)
        finished = [
            i
            for i, sequence in enumerate(self.running)
            if len(sequence.token_ids) == self.sampling.max_new_tokens
            or self.ending.is_final(sequence.token_ids)
        ]
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
