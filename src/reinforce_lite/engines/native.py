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
replayed as one CUDA graph (`static_decoder.py`). Either way a scheduler decides which sequences run
(`scheduler.py`, `static_scheduler.py`).

It runs the families that `llama.py` knows. Any other model goes through `hf`.
"""

from collections.abc import Sequence
from math import ceil

import torch

from reinforce_lite.engines.base import OnProgress, ignore_progress
from reinforce_lite.engines.cache_size import KEPT_SHARE, cache_bytes, cache_size, read_gpu_memory
from reinforce_lite.engines.ending import Ending
from reinforce_lite.engines.kv_cache import token_kv_bytes
from reinforce_lite.engines.scheduler import Scheduler
from reinforce_lite.engines.sequence import SampledSequence, start_sequences
from reinforce_lite.engines.static_cache import BatchSize
from reinforce_lite.engines.static_decoder import StaticDecoder
from reinforce_lite.engines.static_scheduler import StaticScheduler
from reinforce_lite.models.forward import common_prefix_length
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Completion, Prompt, Sampling

PROMPT_WIDTH_STEP = 64
"""A static decoder has room for prompts of a multiple of this many tokens, so that it is seldom made anew."""
STATE_BYTES = 20
"""Of a token on the device besides its keys and values: its uniform, id and log-probability."""


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
            Scheduler(self.policy, self.max_num_seqs, groups, sampling, ending).run(progress)
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
        if decoder.cache.kv.nbytes > KEPT_SHARE * cache_bytes(read_gpu_memory(self.policy.device)):
            self._decoder = None

    def _static_decoder(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling) -> StaticDecoder:
        """The decoder of the previous call if it does for this one, else another."""
        longest = ceil(max(map(len, prompts)) / PROMPT_WIDTH_STEP) * PROMPT_WIDTH_STEP
        token_bytes = token_kv_bytes(self.policy.model.config, self.policy.dtype.itemsize) + STATE_BYTES
        n = max(len(prompts), self.prompts_per_step if sampling.samples > 1 else 1)
        rows, slots = cache_size(
            n, sampling, self.max_num_seqs, longest, token_bytes, read_gpu_memory(self.policy.device)
        )
        size = BatchSize(rows, sampling.max_new_tokens, slots, longest)
        if not (self._decoder and self._decoder.serves(self.policy, sampling, size)):
            self._decoder = None  # before memory is taken for the next
            self._decoder = StaticDecoder(self.policy, sampling, size)
        return self._decoder
