"""Keys and values of the answers in flight, at three depths: prefix, prompt, and the answer's own.

What several answers begin with is held once and attended to in one product for them all; the three are
parts of one attention (`attention.py`). An answer's own lie in room that is allocated once and never
copied. Slots for prompts and for answers stay dense: when one is given up, the last moves into its place.

Shapes: R answers in flight, W tokens that the longest of them has reached, B prompts in flight with up to
G answers each, P tokens of the longest prompt, S of the prefix; Q query heads, K heads of keys and values,
D head size, M = Q / K.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reinforce_lite.models.attention import PartialAttention, attend, merge
from reinforce_lite.models.llama import Llama


class KVCache:
    """Room for so many prompts and answers; `attend` is what `Llama` asks for in a decoding step."""

    def __init__(
        self, llama: Llama, prefix: Sequence[Tensor], prompts: int, longest: int, rows: int, width: int
    ) -> None:
        """`prefix` has each layer's (S, 2K x D) keys and values. Prompts have at most `longest` tokens
        behind it, answers at most `width`."""
        self.llama = llama
        self.shape = (llama.kv_heads, llama.head_size)
        self.prefix = [p.view(len(p), 2, *self.shape).permute(1, 2, 0, 3).contiguous() for p in prefix]
        self.prefix_length = len(prefix[0]) if prefix else 0
        weight = llama.layers[0].qkv.weight
        layers, (k, d) = len(llama.layers), self.shape
        # Zeros, since what was never written is multiplied by a probability of 0.
        self.prompts = weight.new_zeros(layers, 2, prompts, k, longest, d)
        self.own = weight.new_zeros(layers, 2, rows, k, width, d)
        self.lengths: list[int] = []
        """Own tokens of each prompt in flight."""
        self.slots: list[int] = []
        """For each answer in flight its prompt's slot."""
        self.written: list[int] = []
        """For each answer in flight its tokens so far."""
        self.members: Tensor | None = None
        """For each cell of the table the answer that stands there; None when they stand in order."""

    @property
    def free_prompts(self) -> int:
        """How many more prompts there is room for."""
        return self.prompts.shape[2] - len(self.lengths)

    def add_prompt(self, length: int) -> int:
        """A slot for a prompt of so many tokens behind the prefix."""
        self.lengths.append(length)
        return len(self.lengths) - 1

    def fill(self, slots: Sequence[int], layer: int, kv: Tensor) -> None:
        """One layer's (N, 2K x D) keys and values of the prompts in these slots, one after another."""
        parts = kv.view(len(kv), 2, *self.shape).permute(1, 2, 0, 3)  # (2, K, N, D)
        for slot, part in zip(
            slots, torch.split(parts, [self.lengths[s] for s in slots], dim=2), strict=True
        ):
            self.prompts[layer, :, slot, :, : part.shape[2]] = part

    def add_answer(self, slot: int) -> None:
        """Begin an answer to the prompt in a slot."""
        self.slots.append(slot)
        self.written.append(0)

    def drop_answer(self, row: int) -> None:
        """Give up an answer's place: the last one moves there. A prompt goes with the last of its answers."""
        last, slot = len(self.slots) - 1, self.slots[row]
        if row != last:
            used = self.written[last]
            self.own[:, :, row, :, :used] = self.own[:, :, last, :, :used]
        for each in (self.slots, self.written):
            each[row] = each[last]
            each.pop()
        if slot not in self.slots:
            self._drop_prompt(slot)

    def _drop_prompt(self, slot: int) -> None:
        last = len(self.lengths) - 1
        if slot != last:
            used = self.lengths[last]
            self.prompts[:, :, slot, :, :used] = self.prompts[:, :, last, :, :used]
            self.slots = [slot if s == last else s for s in self.slots]
        self.lengths[slot] = self.lengths[last]
        self.lengths.pop()

    def begin_step(self) -> Tensor:
        """Make room for one more token of every answer; returns the (R,) places they stand at."""
        device = self.own.device
        slots, written, lengths = (
            torch.tensor(x, device=device) for x in (self.slots, self.written, self.lengths)
        )
        self.rows, self.at = torch.arange(len(slots), device=device), written
        self.reached, self.longest = max(self.written) + 1, max(self.lengths)
        self.unwritten = self._hidden(self.reached, written + 1) if len(set(self.written)) > 1 else None
        self.past = self._hidden(self.longest, lengths) if len(set(self.lengths)) > 1 else None
        self._tabulate()
        self.written = [w + 1 for w in self.written]
        return self.prefix_length + lengths[slots] + written

    def _hidden(self, width: int, lengths: Tensor) -> Tensor:
        """(n, 1, 1, width): -inf behind each of the (n,) lengths, else 0."""
        behind = torch.arange(width, device=lengths.device) >= lengths[:, None]
        zeros = torch.zeros(behind.shape, dtype=self.own.dtype, device=lengths.device)
        return zeros.masked_fill_(behind, -torch.inf)[:, None, None]

    def _tabulate(self) -> None:
        """Lay the answers out as a (B, G) table, so that those to one prompt meet its keys in one product."""
        counts, numbers = [0] * len(self.lengths), []
        for slot in self.slots:
            numbers.append(counts[slot])
            counts[slot] += 1
        g = max(counts)
        cells = [slot * g + number for slot, number in zip(self.slots, numbers, strict=True)]
        self.table = (len(counts), g)
        self.members = None
        if cells != list(range(len(counts) * g)):  # not in order, or not full
            self.cells = torch.tensor(cells, device=self.own.device)  # (R,)
            self.members = torch.zeros(len(counts) * g, dtype=torch.long, device=self.own.device)
            self.members[self.cells] = self.rows  # (B x G,) an empty cell repeats the first answer

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """(R, (Q + 2K) x D), one new token an answer, to (R, Q x D)."""
        k, d = self.shape
        q, new = torch.split(qkv, [self.llama.key_start, 2 * k * d], dim=-1)
        q = q.view(len(q), k, -1, d)  # (R, K, M, D)
        self.own[layer, :, self.rows, :, self.at] = new.view(-1, 2, k, d)
        parts = [self._to_own(layer, q), self._to_prompts(layer, q)]
        if self.prefix:
            parts.append(self._to_prefix(layer, q))
        return merge(parts)[0].flatten(1)

    def _to_own(self, layer: int, q: Tensor) -> PartialAttention:
        """(R, K, M, D) and (R, K, M): attention to the answers' own tokens."""
        keys, values = self.own[layer, :, : len(q), :, : self.reached]  # (R, K, W, D)
        return attend(q, keys, values, self.llama.scale, self.unwritten)

    def _to_prompts(self, layer: int, q: Tensor) -> PartialAttention:
        """The same to the prompts: the answers to one meet its keys together."""
        b, g = self.table
        keys, values = self.prompts[layer, :, :b, :, : self.longest]  # (B, K, P, D)
        cells = q if self.members is None else q[self.members]
        together = cells.view(b, g, *q.shape[1:]).transpose(1, 2).flatten(2, 3)  # (B, K, G x M, D)
        made = attend(together, keys, values, self.llama.scale, self.past)
        out, lse = (self._by_answer(x) for x in made)
        return out, lse

    def _to_prefix(self, layer: int, q: Tensor) -> PartialAttention:
        """The same to the prefix, which all answers meet together."""
        together = q.transpose(0, 1).flatten(1, 2)  # (K, R x M, D)
        keys, values = self.prefix[layer][:, None]  # (1, K, S, D)
        out, lse = attend(together[None], keys, values, self.llama.scale)
        by_answer = (q.shape[1], len(q), q.shape[2])  # (K, R, M)
        return out.reshape(*by_answer, -1).transpose(0, 1), lse.view(by_answer).transpose(0, 1)

    def _by_answer(self, cells: Tensor) -> Tensor:
        """(B, K, G x M, ...) to (R, K, M, ...)."""
        b, g = self.table
        rows = cells.reshape(b, cells.shape[1], g, -1, *cells.shape[3:]).transpose(1, 2).flatten(0, 1)
        return rows if self.members is None else rows[self.cells]
