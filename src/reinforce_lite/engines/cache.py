"""Keys and values of the answers in flight, at three depths: prefix, prompt, and the answer's own.

What several answers begin with is held once and attended to in one product for them all. Slots for
prompts and for answers stay dense: when one is given up, the last moves into its place.

Shapes: R answers in flight, W tokens that the longest of them has written, B prompts in flight with up
to G answers each, P tokens of the longest prompt, S of the prefix; Q query heads, K heads of keys and
values, D head size, M = Q / K.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reinforce_lite.llama import Llama


class Cache:
    """Room for so many prompts and answers; `attend` is what `Llama` asks for in a decoding step."""

    def __init__(self, llama: Llama, prefix: Sequence[Tensor], prompts: int, longest: int, rows: int, width: int):
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
        self.own = weight.new_zeros(2, layers, rows, k, width, d)
        self.lengths: list[int] = []
        """Own tokens of each prompt in flight."""
        self.slots: list[int] = []
        """For each answer in flight its prompt's slot."""
        self.written: list[int] = []
        """For each answer in flight its tokens so far."""

    def add_prompt(self, seen: Tensor) -> int:
        """Take in a prompt's keys and values, (layers, P, 2K x D); returns its slot."""
        slot = len(self.lengths)
        kv = seen.view(*seen.shape[:2], 2, *self.shape).permute(2, 0, 3, 1, 4)
        self.prompts[:, :, slot, :, : seen.shape[1]] = kv
        self.lengths.append(seen.shape[1])
        return slot

    def add_answer(self, slot: int) -> None:
        """Begin an answer to the prompt in a slot."""
        self.slots.append(slot)
        self.written.append(0)

    def drop_answer(self, row: int) -> None:
        """Give up an answer's place: the last answer moves there. Its prompt goes with the last of its answers."""
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
        slots, written, lengths = (torch.tensor(x, device=device) for x in (self.slots, self.written, self.lengths))
        self.rows = torch.arange(len(slots), device=device)
        self.at = written
        self.width = max(self.written) + 1
        self.longest = max(self.lengths)
        counts = [0] * len(self.lengths)
        cells, members = [], []  # an answer's cell in the (B, G) table; for each answer (slot, number)
        for slot in self.slots:
            members.append((slot, counts[slot]))
            counts[slot] += 1
        g = max(counts)
        cells = [slot * g + number for slot, number in members]
        self.cells = torch.tensor(cells, device=device)  # (R,)
        self.members = torch.zeros(len(counts) * g, dtype=torch.long, device=device)
        self.members[self.cells] = self.rows  # (B x G,) an empty cell repeats the first answer
        self.table = (len(counts), g)
        past = torch.arange(self.longest, device=device) >= lengths[slots, None]  # (R, P)
        unwritten = torch.arange(self.width, device=device) > written[:, None]  # (R, W)
        self.hidden = torch.cat([past, unwritten], dim=1)[:, None, None]  # (R, 1, 1, P + W)
        self.written = [w + 1 for w in self.written]
        return self.prefix_length + lengths[slots] + written

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """(R, (Q + 2K) x D), one new token an answer, to (R, Q x D)."""
        k, d = self.shape
        q, new = qkv.split([self.llama.key_start, 2 * k * d], dim=-1)
        q = (q * self.llama.scale).view(len(q), k, -1, d)  # (R, K, M, D)
        own = self.own[:, layer]
        own[:, self.rows, :, self.at] = new.view(-1, 2, k, d).transpose(0, 1).transpose(0, 1)
        keys, values = self.own[:, layer, : len(q), :, : self.width]  # (R, K, W, D)
        prompt_keys, prompt_values = self.prompts[:, layer, : self.table[0], :, : self.longest]  # (B, K, P, D)
        scores = [self._by_answer(self._by_prompt(q) @ prompt_keys.transpose(2, 3)), q @ keys.transpose(2, 3)]
        near = torch.cat(scores, dim=-1).masked_fill_(self.hidden, -torch.inf)  # (R, K, M, P + W)
        s, p = self.prefix_length, self.longest
        if s:
            far_keys, far_values = self.prefix[layer]  # (K, S, D)
            near = torch.cat([_by_row(_together(q) @ far_keys.transpose(1, 2), len(q)), near], dim=-1)
        weights = near.softmax(-1)
        out = weights[..., s + p :] @ values  # (R, K, M, D)
        out += self._by_answer(self._by_prompt(weights[..., s : s + p]) @ prompt_values)
        if s:
            out += _by_row(_together(weights[..., :s]) @ far_values, len(q))
        return out.flatten(1)

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """(R, K, M, x) to (B, K, G x M, x): the answers to one prompt together."""
        b, g = self.table
        cells = rows[self.members].view(b, g, *rows.shape[1:])
        return cells.transpose(1, 2).flatten(2, 3)

    def _by_answer(self, cells: Tensor) -> Tensor:
        """The inverse of `_by_prompt`."""
        b, g = self.table
        rows = cells.view(b, cells.shape[1], g, -1, cells.shape[-1]).transpose(1, 2).flatten(0, 1)
        return rows[self.cells]


def _together(rows: Tensor) -> Tensor:
    """(R, K, M, x) to (K, R x M, x): all answers in one product."""
    return rows.transpose(0, 1).flatten(1, 2)


def _by_row(heads: Tensor, rows: int) -> Tensor:
    """The inverse of `_together`."""
    return heads.view(len(heads), rows, -1, heads.shape[-1]).transpose(0, 1)
