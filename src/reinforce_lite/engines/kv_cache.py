"""Keys and values of the running sequences, at three levels: prefix, prompts, and sequences.

The prefix that all prompts share and each prompt are stored once, and all their sequences attend to them in
one product; the three levels are parts of one attention (`attention.py`). A sequence's own tokens lie in
memory that is allocated once and never copied. Slots for prompts and indices of sequences stay dense: when
one is removed, the last moves into its place.

Shapes: R running sequences, W tokens of the longest of them, B cached prompts with up to G sequences each,
P tokens of the longest prompt, S of the prefix; Q query heads, K heads of keys and values, D head size,
M = Q / K.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reinforce_lite.models.attention import PartialAttention, attend, merge
from reinforce_lite.models.llama import Llama


class KVCache:
    """A fixed number of prompts and sequences.

    In a decoding step call `next_positions` once; then `Llama` calls `attend` once for each layer.
    """

    def __init__(
        self, llama: Llama, prefix: Sequence[Tensor], prompts: int, longest: int, sequences: int, width: int
    ) -> None:
        """Allocate `prompts` slots of `longest` tokens after the prefix, and `sequences` of `width` tokens.

        `prefix` holds each layer's (S, 2K x D) keys and values; empty without a prefix.
        """
        self.llama = llama
        self.shape = (llama.kv_heads, llama.head_size)
        self.prefix = [p.view(len(p), 2, *self.shape).permute(1, 2, 0, 3).contiguous() for p in prefix]
        self.prefix_length = len(prefix[0]) if prefix else 0
        weight = llama.layers[0].qkv.weight
        layers, (k, d) = len(llama.layers), self.shape
        # Zeros, since entries that were never written are multiplied by a probability of 0.
        self.prompts = weight.new_zeros(layers, 2, prompts, k, longest, d)
        """Keys and values by prompt slot; those of `sequences` are by sequence."""
        self.sequences = weight.new_zeros(layers, 2, sequences, k, width, d)
        self.prompt_lengths: list[int] = []
        """Of each prompt slot."""
        self.slots: list[int] = []
        """Each sequence's prompt slot."""
        self.lengths: list[int] = []
        """Each sequence's tokens so far, without its prompt."""
        self.grid_sequences: Tensor | None = None
        """(B x G,) the sequence in each cell of the (B, G) grid; None when that is simply their order."""

    @property
    def free_prompt_slots(self) -> int:
        """How many more prompts fit."""
        return self.prompts.shape[2] - len(self.prompt_lengths)

    def add_prompt(self, length: int) -> int:
        """Reserve a slot for a prompt of `length` tokens after the prefix; returns the slot."""
        self.prompt_lengths.append(length)
        return len(self.prompt_lengths) - 1

    def write_prompts(self, slots: Sequence[int], layer: int, kv: Tensor) -> None:
        """Store one layer's (N, 2K x D) keys and values of the prompts in `slots`, concatenated."""
        heads = kv.view(len(kv), 2, *self.shape).permute(1, 2, 0, 3)  # (2, K, N, D)
        prompts = torch.split(heads, [self.prompt_lengths[s] for s in slots], dim=2)
        for slot, prompt in zip(slots, prompts, strict=True):
            self.prompts[layer, :, slot, :, : prompt.shape[2]] = prompt

    def add_sequence(self, slot: int) -> None:
        """Start a sequence that continues the prompt in `slot`."""
        self.slots.append(slot)
        self.lengths.append(0)

    def remove_sequence(self, index: int) -> None:
        """Remove a sequence; the last one takes its index. A prompt leaves with its last sequence."""
        last, slot = len(self.slots) - 1, self.slots[index]
        if index != last:
            n = self.lengths[last]
            self.sequences[:, :, index, :, :n] = self.sequences[:, :, last, :, :n]
        for values in (self.slots, self.lengths):
            values[index] = values[last]
            values.pop()
        if slot not in self.slots:
            self._remove_prompt(slot)

    def _remove_prompt(self, slot: int) -> None:
        last = len(self.prompt_lengths) - 1
        if slot != last:
            n = self.prompt_lengths[last]
            self.prompts[:, :, slot, :, :n] = self.prompts[:, :, last, :, :n]
            self.slots = [slot if s == last else s for s in self.slots]
        self.prompt_lengths[slot] = self.prompt_lengths[last]
        self.prompt_lengths.pop()

    def next_positions(self) -> Tensor:
        """Start a decoding step: reserve one more token of every sequence; returns their (R,) positions."""
        device = self.sequences.device
        prompt_ends = [self.prefix_length + self.prompt_lengths[slot] for slot in self.slots]
        positions = [end + n for end, n in zip(prompt_ends, self.lengths, strict=True)]
        self.indices = torch.arange(len(self.slots), device=device)
        places = torch.tensor([self.lengths, positions], device=device)  # one copy to the device for both
        self.write_at = places[0]
        self.lengths = [n + 1 for n in self.lengths]
        self.width, self.longest = max(self.lengths), max(self.prompt_lengths)
        self.sequence_bias, self.prompt_bias = self._bias(self.lengths), self._bias(self.prompt_lengths)
        self._arrange_grid()
        return places[1]

    def _bias(self, lengths: Sequence[int]) -> Tensor | None:
        """(n, 1, 1, longest): 0 for the tokens of n lengths, -inf after them; None if these are equal."""
        longest, device = max(lengths), self.sequences.device
        if min(lengths) == longest:
            return None
        unused = torch.arange(longest, device=device) >= torch.tensor(lengths, device=device)[:, None]
        zeros = torch.zeros(unused.shape, dtype=self.sequences.dtype, device=device)
        return zeros.masked_fill_(unused, -torch.inf)[:, None, None]

    def _arrange_grid(self) -> None:
        """Arrange the sequences as a (B, G) grid, one prompt per row: its keys meet them in one product."""
        counts, columns = [0] * len(self.prompt_lengths), []
        for slot in self.slots:
            columns.append(counts[slot])
            counts[slot] += 1
        g = max(counts)
        cells = [slot * g + column for slot, column in zip(self.slots, columns, strict=True)]
        self.grid = (len(counts), g)
        self.grid_sequences = None
        if cells != list(range(len(counts) * g)):  # not in order, or not full
            self.cells = torch.tensor(cells, device=self.sequences.device)  # (R,)
            self.grid_sequences = self.indices.new_zeros(len(counts) * g)
            self.grid_sequences[self.cells] = self.indices  # an empty cell repeats sequence 0

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """(R, (Q + 2K) x D) of one new token per sequence to (R, Q x D)."""
        k, d = self.shape
        q, kv = torch.split(qkv, [self.llama.key_start, 2 * k * d], dim=-1)
        q = q.view(len(q), k, -1, d)  # (R, K, M, D)
        self.sequences[layer, :, self.indices, :, self.write_at] = kv.view(-1, 2, k, d)
        parts = [self._attend_to_sequences(layer, q), self._attend_to_prompts(layer, q)]
        if self.prefix:
            parts.append(self._attend_to_prefix(layer, q))
        return merge(parts)[0].flatten(1)

    def _attend_to_sequences(self, layer: int, q: Tensor) -> PartialAttention:
        """(R, K, M, D) and (R, K, M): each sequence's attention to its own tokens."""
        keys, values = self.sequences[layer, :, : len(q), :, : self.width]  # (R, K, W, D)
        return attend(q, keys, values, self.llama.scale, self.sequence_bias)

    def _attend_to_prompts(self, layer: int, q: Tensor) -> PartialAttention:
        """The same shapes: attention to the prompts, in one product for all sequences of a prompt."""
        b, g = self.grid
        keys, values = self.prompts[layer, :, :b, :, : self.longest]  # (B, K, P, D)
        cells = q if self.grid_sequences is None else q[self.grid_sequences]
        by_prompt = cells.view(b, g, *q.shape[1:]).transpose(1, 2).flatten(2, 3)  # (B, K, G x M, D)
        out, lse = attend(by_prompt, keys, values, self.llama.scale, self.prompt_bias)
        return self._by_sequence(out), self._by_sequence(lse)

    def _attend_to_prefix(self, layer: int, q: Tensor) -> PartialAttention:
        """The same shapes: attention to the prefix, in one product for all sequences."""
        together = q.transpose(0, 1).flatten(1, 2)  # (K, R x M, D)
        keys, values = self.prefix[layer][:, None]  # (1, K, S, D)
        out, lse = attend(together[None], keys, values, self.llama.scale)
        by_head = (q.shape[1], len(q), q.shape[2])  # (K, R, M)
        return out.reshape(*by_head, -1).transpose(0, 1), lse.view(by_head).transpose(0, 1)

    def _by_sequence(self, x: Tensor) -> Tensor:
        """(B, K, G x M, ...) to (R, K, M, ...)."""
        b, g = self.grid
        cells = x.reshape(b, x.shape[1], g, -1, *x.shape[3:]).transpose(1, 2).flatten(0, 1)
        return cells if self.grid_sequences is None else cells[self.cells]


def token_kv_bytes(config: Any, itemsize: int) -> int:
    """Bytes of one token's keys and values in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_size * itemsize)
