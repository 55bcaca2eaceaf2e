"""Our own decoder over the policy's own weights: one copy, so sampler and trainer can't drift apart.

What makes it faster than transformers' `generate`, the largest saving on a CPU first:

- the prefix that all prompts share (worked examples) and each prompt are computed once, by the same prefix
  tree as the update (`prefix_tree.py`), and all sequences attend to the same keys and values (`kv_cache.py`);
- a sequence's keys and values go into memory that is allocated once and never copied;
- weights are packed once for the matrix products of all decoding steps (`packed_linear.py`);
- sampling sorts a few dozen likely tokens instead of the vocabulary, and is still exact (`sampler.py`);
- continuous batching: a finished sequence leaves, and a waiting one takes its place.

That is for a CPU, where a step takes as long as its arithmetic and the batch shrinks with the sequences left.
On a CUDA device launching the operations takes longer, so a step has fixed shapes and addresses and is
replayed as one CUDA graph (`static_decoder.py`).

It runs the families that `llama.py` knows. Any other model goes through `hf`.

Shapes: R running sequences, H hidden size, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from functools import partial
from math import ceil

import torch

from reinforce_lite.engines.base import OnProgress, ignore_progress
from reinforce_lite.engines.ending import Ending
from reinforce_lite.engines.kv_cache import KVCache, token_kv_bytes
from reinforce_lite.engines.packed_linear import make_linear
from reinforce_lite.engines.sequence import SampledSequence, append_tokens, start_sequences
from reinforce_lite.engines.static_cache import BatchSize
from reinforce_lite.engines.static_decoder import StaticDecoder
from reinforce_lite.engines.static_scheduler import StaticScheduler
from reinforce_lite.models.forward import common_prefix_length, prefix_keys_and_values
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, PrefixTree
from reinforce_lite.types import Completion, Prompt, Sampling

CACHE_BYTES = 768 * 10**6
"""KV cache without a CUDA device, in bytes."""
CACHE_SHARE = 0.125
"""KV cache on a CUDA device, as a share of its memory."""
KEPT_SHARE = 0.25
"""Up to this share of the above, a CUDA device's cache stays allocated while the policy is trained."""
PROMPT_WIDTH_STEP = 64
"""A static decoder has room for prompts of a multiple of this many tokens, so that it is seldom made anew."""
STATE_BYTES = 20
"""Of a token on the device besides its keys and values: its uniform, id and log-probability."""
PREFILL_TOKENS = 2048
"""Upper limit of prompt tokens, padding included, in one prefill of several prompts."""


class NativeEngine:
    """Decodes up to `max_num_seqs` sequences concurrently, with continuous batching.

    Only for a policy with `llama`, our own forward pass.

    On a CUDA device a call for groups has room for those of `prompts_per_step` prompts, even if it has fewer:
    a step's further rounds (`rollout.refill`) then use the same static decoder as its first. That room
    depends on settings alone, since another number of rows rounds otherwise.
    """

    def __init__(self, policy: Policy, max_num_seqs: int = 256, prompts_per_step: int = 1) -> None:
        self.policy = policy
        self.max_num_seqs = max_num_seqs
        self.prompts_per_step = prompts_per_step
        self._decoder: StaticDecoder | None = None
        """Kept from call to call, so that its graph is captured once."""

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, progress: OnProgress = ignore_progress
    ) -> list[list[Completion]]:
        """See `Engine.generate`. A sequence's draws depend on the seed, its prompt and its index alone.
        The other sequences change its rounding. That can change a token, and then all tokens after it."""
        if not prompts:
            return []
        assert self.policy.llama is not None, "the native engine does not support this model"
        self.policy.llama.check_fused()
        groups = start_sequences(prompts, sampling, seed)
        eos_token_ids, decode = self.policy.eos_token_ids, self.policy.decode
        ending = Ending(eos_token_ids, decode, sampling.stop, sampling.repetition_detection)
        if self._is_static():
            self._decode_static(groups, sampling, ending, progress)
        else:
            scheduler = _Scheduler(self.policy, self.max_num_seqs, groups, sampling, ending)
            while scheduler.admit():
                progress(scheduler.sample())
                scheduler.decode()
        return [[ending.completion(s.token_ids, s.logprobs) for s in group] for group in groups]

    def _is_static(self) -> bool:
        """Whether steps have fixed shapes."""
        return self.policy.device.type == "cuda"

    def _decode_static(
        self,
        groups: Sequence[Sequence[SampledSequence]],
        sampling: Sampling,
        ending: Ending,
        progress: OnProgress,
    ) -> None:
        prompts = [group[0].prompt for group in groups]
        try:
            decoder = self._static_decoder(prompts, sampling)
            StaticScheduler(decoder, groups, common_prefix_length(prompts), ending).run(progress)
        except BaseException:
            self._decoder = None  # its memory is needed where it ran out, and its state is of no use
            raise
        if decoder.cache.kv.nbytes > KEPT_SHARE * cache_bytes(gpu_memory(self.policy.device)):
            self._decoder = None

    def _static_decoder(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling) -> StaticDecoder:
        """The decoder of the previous call if it does for this one, else another."""
        longest = ceil(max(map(len, prompts)) / PROMPT_WIDTH_STEP) * PROMPT_WIDTH_STEP
        token_bytes = token_kv_bytes(self.policy.model.config, self.policy.dtype.itemsize) + STATE_BYTES
        n = max(len(prompts), self.prompts_per_step if sampling.samples > 1 else 1)
        rows, slots = cache_size(
            n, sampling, self.max_num_seqs, longest, token_bytes, gpu_memory(self.policy.device)
        )
        size = BatchSize(rows, sampling.max_new_tokens, slots, longest)
        if not (self._decoder and self._decoder.serves(self.policy, sampling, size)):
            self._decoder = None  # before memory is taken for the next
            self._decoder = StaticDecoder(self.policy, sampling, size)
        return self._decoder


def gpu_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's whole memory; None elsewhere."""
    is_cuda = device.type == "cuda"
    return int(torch.cuda.get_device_properties(device).total_memory) if is_cuda else None


class _Scheduler:
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
            gpu_memory(policy.device),
        )
        size = min(self.capacity, sampling.samples)
        self.waiting = deque(group[i : i + size] for group in groups for i in range(0, len(group), size))
        self.linear = make_linear(llama, self.capacity)
        self.cache = KVCache(llama, self.prefix, slots, longest, self.capacity, sampling.max_new_tokens)
        self.running: list[SampledSequence] = []
        self.states = policy.model.get_input_embeddings().weight.new_empty(0, policy.model.config.hidden_size)
        """(R, H): the final hidden states that predict the running sequences' next tokens.

        Valid between `admit` and `sample`; `sample` removes finished sequences, but not their states."""

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
            if groups and (len(groups) + 1) * longest > PREFILL_TOKENS:  # attention pads prompts
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
    all layers. The same in every run on a machine.
    """
    budget = cache_bytes(gpu_memory)
    prompt_share = min(1.0, 2 / sampling.samples)
    fitting = int(budget / token_bytes / (sampling.max_new_tokens + prompt_tokens * prompt_share))
    sequences = max(1, min(fitting, max_num_seqs, prompts * sampling.samples))
    together = min(sequences, sampling.samples)  # those of one prompt that are admitted together
    # Twice as many prompts as run in full, since some are partly finished.
    slots = min(prompts * ceil(sampling.samples / together), sequences, 2 * ceil(sequences / together))
    return sequences, slots
