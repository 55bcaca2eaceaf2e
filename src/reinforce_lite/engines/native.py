"""Our own decoder over the policy's own weights: one copy, so sampler and trainer can't drift apart.

What makes it faster than `generate`, in the order of what it saves on a processor:

- what all prompts begin with (the worked examples) and each prompt are computed once, as the tree that
  the update takes (`tree.py`), and all answers attend to the same keys and values (`cache.py`);
- an answer's own keys and values go into room that is allocated once and never copied;
- weights are laid out once for the products of all steps (`packed.py`);
- sampling sorts a few dozen likely tokens instead of the vocabulary, and is exact all the same;
- an answer that has ended leaves, and the next of the step's answers takes its place.

It runs the families that `llama.py` knows. Any other model goes through `hf`.

Shapes: R answers in flight, H hidden size, V vocabulary.
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

CACHE_BYTES = 768 * 10**6  # of the answers in flight, on a CPU
CACHE_SHARE = 0.125  # of a device's memory
PREFILL_TOKENS = 2048  # at once


@dataclass(slots=True)
class _Answer:
    """One completion in the making."""

    prompt: tuple[int, ...]
    uniforms: list[float]
    """max_new_tokens numbers in [0, 1), one a token."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class NativeEngine:
    """Decodes up to `rows` answers at once."""

    def __init__(self, policy: Policy, max_num_seqs: int = 256) -> None:
        """Raises ValueError for a model that `llama.py` does not know."""
        if policy.llama is None:
            raise ValueError(f"the native engine does not know {policy.model.config.model_type} models")
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
        """See `Engine.generate`. An answer's draws come from the seed, its prompt and its number alone:
        what else is in the batch changes nothing but rounding."""
        if not prompts:
            return []
        self.policy.check_fused()
        groups = self._groups(prompts, sampling, seed)
        flight = _Flight(self.policy, self.max_num_seqs, groups, sampling)
        while flight.begin():
            progress(flight.draw())
            flight.advance()
        return [[self._completion(answer) for answer in group] for group in groups]

    def _groups(self, prompts: Sequence[Prompt], sampling: Sampling, seed: int) -> list[list[_Answer]]:
        groups, asked = [], Counter[tuple[int, ...]]()
        for prompt in prompts:
            ids = prompt.token_ids
            source = torch.Generator().manual_seed(derive_seed(seed, f"answers to {ids}", asked[ids]))
            asked[ids] += 1  # a question that is asked twice gets two sets of answers
            shape = (sampling.samples, sampling.max_new_tokens)
            uniforms = torch.rand(shape, generator=source, dtype=torch.float64)
            groups.append([_Answer(ids, row) for row in uniforms.tolist()])
        return groups

    def _completion(self, answer: _Answer) -> Completion:
        kept, truncated = cut_at_eos(answer.ids, self.policy.eos_token_ids)
        return make_completion(kept, truncated, answer.logprobs, self.policy.decode)


class _Flight:
    """A call's answers: those that wait, those in flight, and the cache that holds these.

    A prompt's answers start together, so that its keys and values are made once.
    """

    def __init__(
        self, policy: Policy, rows: int, groups: Sequence[Sequence[_Answer]], sampling: Sampling
    ) -> None:
        assert policy.llama is not None
        self.policy, self.llama, self.sampling = policy, policy.llama, sampling
        self.ends = sorted(policy.eos_token_ids)
        prompts = [group[0].prompt for group in groups]
        self.start = common_prefix_length(prompts)
        self.prefix: list[Tensor] = []
        if self.start:
            keys: list[Tensor] = []
            self._run([prompts[0][: self.start]], 0, lambda _, kv: keys.append(kv))
            self.prefix = keys
        longest = max(map(len, prompts)) - self.start
        self.limit = min(rows, _room(policy, sampling, longest))
        size = min(self.limit, sampling.samples)
        self.waiting = deque(group[i : i + size] for group in groups for i in range(0, len(group), size))
        self.limit = min(self.limit, sum(map(len, groups)))
        self.linear = make_linear(self.llama, self.limit)
        held = prompt_slots(len(groups), sampling.samples, self.limit)
        self.cache = KVCache(self.llama, self.prefix, held, longest, self.limit, sampling.max_new_tokens)
        self.rows: list[_Answer] = []
        self.states = policy.model.get_input_embeddings().weight.new_empty(0, policy.model.config.hidden_size)
        """(R, H): what each answer's next token is drawn from."""

    def begin(self) -> bool:
        """Let waiting answers start where there is room for a good many; False when all are done."""
        if self.waiting and (not self.rows or self.limit - len(self.rows) >= self.limit // 8):
            while groups := self._next():
                self._start(groups)
        return bool(self.rows)

    def _next(self) -> list[list[_Answer]]:
        """The groups that fit, up to as many tokens as are computed at once."""
        groups: list[list[_Answer]] = []
        free, slots, longest = self.limit - len(self.rows), self.cache.free_prompts, 0
        while self.waiting and len(self.waiting[0]) <= free and len(groups) < slots:
            longest = max(longest, len(self.waiting[0][0].prompt) - self.start)
            if groups and (len(groups) + 1) * longest > PREFILL_TOKENS:  # attention pads them
                break
            groups.append(list(self.waiting.popleft()))
            free -= len(groups[-1])
        return groups

    def _start(self, groups: list[list[_Answer]]) -> None:
        prompts = [group[0].prompt[self.start :] for group in groups]
        slots = [self.cache.add_prompt(len(ids)) for ids in prompts]
        states = self._run(prompts, self.start, partial(self.cache.fill, slots))
        for slot, group in zip(slots, groups, strict=True):
            for answer in group:
                self.cache.add_answer(slot)
                self.rows.append(answer)
        sizes = torch.tensor([len(group) for group in groups], device=states.device)
        self.states = torch.cat([self.states, states.repeat_interleave(sizes, dim=0)])

    def _run(
        self, prompts: Sequence[Sequence[int]], start: int, keep: Callable[[int, Tensor], None]
    ) -> Tensor:
        """(prompts, H): each one's last state; `keep` is handed each layer's keys and values."""
        tree = PrefixTree([Branch(ids) for ids in prompts], start, self.policy.device)
        attention = PrefixAttention(self.llama, tree, self.prefix, keep)
        return self.llama(tree.ids, tree.positions, attention)[[p[-1] for p in tree.prompts]]

    def draw(self) -> int:
        """Draw a token for every answer in flight; returns how many ended, which leave."""
        written = [len(answer.ids) for answer in self.rows]
        device = self.states.device
        numbers = [answer.uniforms[w] for answer, w in zip(self.rows, written, strict=True)]
        uniforms = torch.tensor(numbers, dtype=finest_float(device), device=device)  # (R,)
        early = torch.tensor([w < self.sampling.min_new_tokens for w in written], device=device)
        logits = final_logits(self.policy.model, self.states, self.linear)  # (R, V)
        drawn, found = sample_tokens(logits.float(), self.sampling, uniforms, self.ends, early)
        self.tokens = drawn.tolist()
        for answer, token, logprob in zip(self.rows, self.tokens, found.tolist(), strict=True):
            answer.ids.append(token)
            answer.logprobs.append(logprob)
        full = self.sampling.max_new_tokens
        ended = [i for i, a in enumerate(self.rows) if a.ids[-1] in self.ends or len(a.ids) == full]
        for row in reversed(ended):
            self.cache.drop_answer(row)
            for each in (self.rows, self.tokens):
                each[row] = each[-1]
                each.pop()
        return len(ended)

    def advance(self) -> None:
        """From the tokens just drawn to the states that the next ones are drawn from."""
        if not self.rows:
            self.states = self.states[:0]
            return
        places = self.cache.begin_step()
        self.states = self.llama(
            torch.tensor(self.tokens, device=places.device), places, self.cache.attend, self.linear
        )


def _room(policy: Policy, sampling: Sampling, longest: int) -> int:
    """How many answers the cache's memory holds; the same on every run on a machine."""
    assert policy.llama is not None
    llama, device = policy.llama, policy.device
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    token = 2 * len(llama.layers) * llama.kv_heads * llama.head_size * policy.dtype.itemsize
    return sequences_that_fit(cache_budget(there), token, sampling, longest)


def cache_budget(card: int | None) -> float:
    """The bytes that a cache may take: a share of a CUDA card's memory, elsewhere a fixed number."""
    return float(CACHE_BYTES) if card is None else CACHE_SHARE * card


def sequences_that_fit(budget: float, token: int, sampling: Sampling, longest: int) -> int:
    """How many answers fit into so many bytes, beside their prompts of up to `longest` tokens; `token` is
    the bytes of one token's keys and values."""
    return max(1, int(budget / token / (sampling.max_new_tokens + longest * min(1.0, 2 / sampling.samples))))


def prompt_slots(groups: int, samples: int, rows: int) -> int:
    """For how many prompts there is room beside `rows` answers in flight, `samples` to each prompt."""
    size = min(rows, samples)  # answers that start together
    return min(groups * ceil(samples / size), rows, 2 * ceil(rows / size))  # some groups are half done


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
