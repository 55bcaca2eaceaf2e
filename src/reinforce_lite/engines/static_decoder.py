"""A decoding step whose shapes and addresses never change, so that a GPU replays it as one CUDA graph.

A step of a 3B model is some 900 operations on little data: launched one by one they keep a fast GPU waiting
for its host. Here everything a step depends on lies on the device in tensors that are made once, and the step
never waits for the host: it decides by itself which sequences end. The host looks every few steps
(`static_scheduler.py`). Weights change in place, so a graph stays valid while a policy is trained.

A row is the place of one sequence. An idle row computes like the others, writes where nothing is read, and
keeps its token. So does a row whose nucleus is wider than the candidates: it is flagged, and the host draws
its token from all.

Prompts are prefilled eagerly, since their lengths differ.

Shapes: R rows, W tokens of each, B prompt slots, H hidden size, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from reinforce_lite.engines.sampler import sample_without_waiting
from reinforce_lite.engines.static_cache import BatchSize, StaticCache
from reinforce_lite.models.forward import prefix_keys_and_values
from reinforce_lite.models.logprobs import final_logits
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, Ids, PrefixTree
from reinforce_lite.types import Sampling
from reinforce_lite.utils.memory import is_out_of_memory
from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 2
"""Steps before a capture, in which libraries allocate what they keep and kernels are compiled."""


class StaticDecoder:
    """The state of R rows on the device, and the decoding step."""

    def __init__(self, policy: Policy, sampling: Sampling, size: BatchSize) -> None:
        llama = policy.llama
        assert llama is not None
        self.policy, self.llama, self.sampling, self.size = policy, llama, sampling, size
        self.settings = _settings(policy, sampling)
        self.cache = StaticCache(llama, size, policy.dtype)
        self.prefix: list[Tensor] = []
        """Each layer's keys and values of the prefix."""
        self.prefix_length = 0
        r, w, device = size.rows, size.width, policy.device
        self.eos_token_ids = torch.tensor(sorted(policy.eos_token_ids), device=device)
        self.tokens = torch.zeros(r, dtype=torch.int64, device=device)
        """(R,) each row's last token."""
        self.lengths = torch.ones(r, dtype=torch.int64, device=device)
        """(R,) its tokens so far, without its prompt."""
        self.seen = self.lengths.clone()
        """(R,) how many of them the host has."""
        self.done = torch.ones(r, dtype=torch.bool, device=device)
        """(R,) idle: there is no sequence, or it has ended."""
        self.wide = torch.zeros(r, dtype=torch.bool, device=device)
        """(R,) waits for the host to draw its token."""
        # One column more than tokens: what an idle row reads, and where it writes.
        self.uniforms = torch.zeros(r, w + 1, dtype=torch.float64, device=device)
        self.sampled = torch.zeros(r, w + 1, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(r, w + 1, dtype=torch.float32, device=device)
        hidden = policy.model.config.hidden_size
        self.states = torch.zeros(r, hidden, dtype=policy.dtype, device=device)
        """(R, H) the states from which the last step drew: of a flagged row they predict its next token."""
        self.prompt_states = torch.zeros(size.prompts, hidden, dtype=policy.dtype, device=device)
        """(B, H) the states that predict the first tokens."""
        self.graph = capture_graph(self.step) if device.type == "cuda" else None
        """What replays the step; None: it is run operation by operation."""

    def serves(self, policy: Policy, sampling: Sampling, size: BatchSize) -> bool:
        """Whether this decoder does what one made with these arguments would do."""
        mine = self.size
        return (
            self.settings == _settings(policy, sampling)
            and (mine.rows, mine.width) == (size.rows, size.width)
            and mine.prompts >= size.prompts
            and mine.prompt_width >= size.prompt_width
        )

    def set_prefix(self, ids: Ids) -> None:
        """Compute the prefix that all prompts share, once for all slots; no ids where they share none."""
        self.prefix_length = len(ids)
        self.prefix = prefix_keys_and_values(self.llama, ids) if ids else []
        if ids:
            self.cache.write_prefix(self.prefix)

    def prefill(self, slots: Sequence[int], prompts: Sequence[Ids]) -> None:
        """Prefill prompts, each without the prefix, into slots."""
        tree = PrefixTree([Branch(ids) for ids in prompts], self.prefix_length, self.llama.device)
        starts = [self.cache.slot_start(slot) + self.prefix_length for slot in slots]
        places = [range(start, start + len(ids)) for start, ids in zip(starts, prompts, strict=True)]
        write = partial(self.cache.write, self._to_device(list(chain(*places))))
        attention = PrefixAttention(self.llama, tree, self.prefix, write)
        states = self.llama(tree.ids, tree.positions, attention)
        last = self._to_device([p[-1] for p in tree.prompts])
        self.prompt_states.index_copy_(0, self._to_device(slots), states[last])

    def assign(self, rows: Sequence[int], slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Let rows continue the prompts in these slots, of these lengths with the prefix."""
        starts = [self.cache.slot_start(slot) for slot in slots]
        self.cache.assign(*self._to_device([rows, starts, lengths]))

    def set_uniforms(self, rows: Sequence[int], uniforms: Sequence[Sequence[float]]) -> None:
        """Write the W numbers of each row's sequence."""
        numbers = torch.tensor(uniforms, dtype=torch.float64, device=self.uniforms.device)
        self.uniforms[:, :-1].index_copy_(0, self._to_device(rows), numbers)

    def set_tokens(
        self, rows: Sequence[int], tokens: Sequence[int], lengths: Sequence[int], done: Sequence[bool]
    ) -> None:
        """Set rows to what the host knows: last token, number of tokens, and whether the sequence ended."""
        index, last, counts, flags = self._to_device([rows, tokens, lengths, done])
        for target, values in ((self.tokens, last), (self.lengths, counts), (self.seen, counts)):
            target.index_copy_(0, index, values)
        self.done.index_copy_(0, index, flags.bool())

    def finish(self, rows: Sequence[int]) -> None:
        """Make rows idle."""
        self.done.index_fill_(0, self._to_device(rows), True)

    def run(self, steps: int) -> None:
        """Decode up to this many tokens of each row, without waiting for the device."""
        advance = self.graph.replay if self.graph else self.step
        for _ in range(steps):
            advance()

    def read_new(self, steps: int) -> list[tuple[bool, list[int], list[float]]]:
        """Wait for the device, and return for each row its flag and what it sampled in the last steps."""
        columns = self.seen[:, None] + torch.arange(steps, device=self.seen.device)
        columns.clamp_(max=self.size.width)
        counts, sampled = self.lengths - self.seen, self.sampled.gather(1, columns)
        parts = (counts[:, None], self.wide[:, None], sampled, self.logprobs.gather(1, columns))
        table = torch.cat([part.double() for part in parts], dim=1).tolist()  # all in one copy; exact
        self.seen.copy_(self.lengths)
        ends = [(2 + int(row[0]), row) for row in table]
        return [(bool(r[1]), [int(t) for t in r[2:end]], r[2 + steps : steps + end]) for end, r in ends]

    def step(self) -> None:
        """Feed each row's last token to the model, sample the next one, and record it."""
        positions = self.cache.prompt_lengths + self.cache.next_places(self.lengths, self.done)
        self.states.copy_(self.llama(self.tokens, positions, self.cache.attend))
        logits = final_logits(self.policy.model, self.states)  # (R, V)
        minimum = self.sampling.min_new_tokens
        tokens, logprobs, wide = sample_without_waiting(
            logits,
            self.sampling,
            self.uniforms.gather(1, self.lengths[:, None]).squeeze(1),
            self.eos_token_ids,
            self.lengths < minimum if minimum else None,
        )
        torch.logical_and(wide, ~self.done, out=self.wide)
        advance = ~(wide | self.done)
        columns = self.lengths.masked_fill(~advance, self.size.width)[:, None]
        self.sampled.scatter_(1, columns, tokens[:, None])
        self.logprobs.scatter_(1, columns, logprobs[:, None])
        self.tokens.copy_(torch.where(advance, tokens, self.tokens))
        self.lengths += advance
        ended = (tokens[:, None] == self.eos_token_ids).any(1) | (self.lengths == self.size.width)
        self.done |= ended & advance

    def _to_device(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.tokens.device)


def _settings(policy: Policy, sampling: Sampling) -> tuple[Any, ...]:
    """What a captured step depends on: settings, an adapter's factor among them, and where all weights are.

    An adapter is compared by identity, and held, so that no later one has its addresses.
    """
    weights = (*policy.model.parameters(), *policy.trained_parameters().values())
    addresses = tuple(w.data_ptr() for w in weights)
    settings = (replace(sampling, samples=1, stop=(), repetition_detection=False), policy.eos_token_ids)
    return *settings, id(policy.llama), policy.adapter, addresses


def capture_graph(step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """Capture a step; None where that fails, which is logged.

    The step is run a few times, so it should change nothing yet.
    """
    try:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.warning("decoding without a CUDA graph, which takes longer: %s", one_line_error(error))
        return None
    return graph
