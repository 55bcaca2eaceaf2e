"""Keys and values of the answers in flight, at three depths: prefix, prompt, and the answer's own.

What several answers begin with is held once and attended to in one product for them all. An answer's
own lie in blocks of BLOCK tokens, each of them dense, for a product copies any other operand first. Slots
for prompts and for answers stay dense too: when one is given up, the last moves into its place.

Shapes: R answers in flight, W places in the blocks that the longest of them has reached, B prompts in
flight with up to G answers each, P tokens of the longest prompt, S of the prefix; Q query heads, K heads
of keys and values, D head size, M = Q / K.
"""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from reinforce_lite.llama import Llama

BLOCK = 32  # tokens


class Cache:
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
        self.prompts = weight.new_zeros(2, layers, prompts, k, longest, d)
        self.block = min(BLOCK, width)
        self.own = weight.new_zeros(ceil(width / self.block), layers, 2, rows, k, self.block, d)
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
            self.prompts[:, layer, slot, :, : part.shape[2]] = part

    def add_answer(self, slot: int) -> None:
        """Begin an answer to the prompt in a slot."""
        self.slots.append(slot)
        self.written.append(0)

    def drop_answer(self, row: int) -> None:
        """Give up an answer's place: the last one moves there. A prompt goes with the last of its answers."""
        last, slot = len(self.slots) - 1, self.slots[row]
        if row != last:
            used = ceil(self.written[last] / self.block)
            self.own[:used, :, :, row] = self.own[:used, :, :, last]
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
        self.rows = torch.arange(len(slots), device=device)
        self.at = (written // self.block, written % self.block)
        self.reached = max(self.written) // self.block + 1  # blocks
        self.longest = max(self.lengths)
        self._tabulate()
        past = torch.arange(self.longest, device=device) >= lengths[slots, None]  # (R, P)
        unwritten = torch.arange(self.reached * self.block, device=device) > written[:, None]  # (R, W)
        self.hidden = torch.cat([past, unwritten], dim=1)[:, None]  # (R, 1, P + W)
        self.written = [w + 1 for w in self.written]
        return self.prefix_length + lengths[slots] + written

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
        q = (q * self.llama.scale).view(len(q), k, -1, d)  # (R, K, M, D)
        block, place = self.at
        self.own[block, layer, :, self.rows, :, place] = new.view(-1, 2, k, d)
        own = [tuple(kv) for kv in self.own[: self.reached, layer, :, : len(q)]]  # (R, K, block, D) each
        prompt_keys, prompt_values = self.prompts[
            :, layer, : self.table[0], :, : self.longest
        ]  # (B, K, P, D)
        scores = [
            self._by_answer(self._by_prompt(q) @ prompt_keys.transpose(2, 3)).transpose(0, 1),
            *((q @ keys.transpose(2, 3)).transpose(0, 1) for keys, _ in own),
        ]
        if self.prefix:
            together = q.transpose(0, 1).flatten(1, 2)  # (K, R x M, D): all answers in one product
            far_keys, far_values = self.prefix[layer]  # (K, S, D)
            far = together @ far_keys.transpose(1, 2)
            scores.insert(0, far.view(k, len(q), -1, far.shape[-1]))
        s, p = self.prefix_length, self.longest
        joined = torch.cat(scores, dim=-1)  # (K, R, M, S + P + W)
        joined[..., s:].masked_fill_(self.hidden, -torch.inf)
        weights = joined.softmax(-1)
        out = self._by_answer(self._by_prompt(weights[..., s : s + p].transpose(0, 1)) @ prompt_values)
        parts = torch.split(weights[..., s + p :], self.block, dim=-1)
        for (_, values), part in zip(own, parts, strict=True):
            out += part.transpose(0, 1) @ values  # (R, K, M, D)
        if self.prefix:
            out += (weights[..., :s].flatten(1, 2) @ far_values).view(k, len(q), -1, d).transpose(0, 1)
        return out.flatten(1)

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """(R, K, M, x) to (B, K, G x M, x): the answers to one prompt together."""
        cells = rows if self.members is None else rows[self.members]
        return cells.view(*self.table, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _by_answer(self, cells: Tensor) -> Tensor:
        """The inverse of `_by_prompt`."""
        b, g = self.table
        rows = cells.view(b, cells.shape[1], g, -1, cells.shape[-1]).transpose(1, 2).flatten(0, 1)
        return rows if self.members is None else rows[self.cells]
