"""Many answers to many questions as one pass: what they begin with is computed once, exactly.

A step's sequences are a tree. The root is what all prompts begin with (worked examples), a branch is
the rest of one prompt, a leaf one completion:

    prefix ─┬─ prompt 1 ─┬─ completion 1.1
            │            └─ completion 1.2
            └─ prompt 2 ─── completion 2.1

All tokens stand in one flat row, so norms and products see no padding. Only attention knows the tree:
a token sees its own sequence up to itself, and all of its ancestors.

Shapes: N flat tokens, R sequences of a block with up to T tokens, A tokens of their ancestors, S of
the prefix; Q query heads, K heads of keys and values, D head size; M = Q / K x T.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from reinforce_lite.llama import Llama

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Branch:
    """A prompt and some completions of it, or none; in a tree, what the prompt has behind the prefix."""

    prompt: Ids
    completions: Sequence[Ids] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Sequences with the same ancestors, which attend to them together."""

    rows: Tensor
    """(R, T) the flat places of their tokens; padding points at a sequence's first token."""
    real: Tensor
    """Places in the flattened `rows` that are no padding."""
    places: Tensor
    """The flat places of those."""
    above: range
    """The flat places of the prompt that they follow; empty for prompts, which follow the prefix alone."""


class Tree:
    """Where each token of some branches stands, and what it attends to."""

    def __init__(self, branches: Sequence[Branch], start: int, device: torch.device) -> None:
        """`start` tokens of a prefix come before every prompt. A completion's last token is left out:
        nothing is predicted from it."""
        ids: list[Ids] = []
        places: list[range] = []
        length = 0

        def stand(tokens: Ids, after: int) -> range:
            nonlocal length
            ids.append(tokens)
            places.append(range(after, after + len(tokens)))
            length += len(tokens)
            return range(length - len(tokens), length)

        prompts = [stand(b.prompt, start) for b in branches]
        bodies = [[stand(c[:-1], start + len(b.prompt)) for c in b.completions] for b in branches]
        self.ids = torch.tensor(list(chain.from_iterable(ids)), device=device)  # (N,)
        self.places = torch.tensor(list(chain.from_iterable(places)), device=device)
        """(N,) where each token stands in its own sequence."""
        self.prompts = prompts
        self.blocks = [_block(prompts, range(0), device)]
        self.blocks += [
            _block(full, prompt, device)
            for prompt, group in zip(prompts, bodies, strict=True)
            if (full := [body for body in group if body])
        ]
        before = [[p[-1:], b] for p, group in zip(prompts, bodies, strict=True) for b in group]
        self.predicts = torch.tensor(list(chain.from_iterable(chain.from_iterable(before))), device=device)
        """The flat places whose states predict the completions' tokens, completion after completion."""


def _block(sequences: Sequence[range], above: range, device: torch.device) -> Block:
    longest = max(map(len, sequences))
    rows = [[*s, *[s[0]] * (longest - len(s))] for s in sequences]
    real = [r * longest + t for r, s in enumerate(sequences) for t in range(len(s))]
    places = list(chain.from_iterable(sequences))
    on = partial(torch.tensor, device=device)
    return Block(on(rows), on(real), on(places), above)


class Attention:
    """Attention over a tree, as `Llama` asks for it: causal within a sequence, whole above it."""

    def __init__(
        self,
        llama: Llama,
        tree: Tree,
        prefix: Sequence[Tensor] = (),
        keep: Callable[[int, Tensor], None] = lambda layer, kv: None,
    ) -> None:
        """`prefix` has for each layer the (S, 2K x D) keys and values of the prefix, if there is one;
        `keep` is handed each layer's (N, 2K x D) keys and values of the tree's own tokens."""
        self.llama, self.tree, self.prefix, self.keep = llama, tree, prefix, keep

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        self.keep(layer, qkv[:, self.llama.key_start :])
        prefix = self.prefix[layer] if self.prefix else None
        out: Tensor = _TreeAttention.apply(qkv, prefix, self.tree, self.llama)  # type: ignore[no-untyped-call]
        return out


class _TreeAttention(Function):
    """softmax(Q K^T scale) V block by block. The probabilities are made again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, prefix: Tensor | None, tree: Tree, llama: Llama) -> Tensor:
        out = qkv.new_empty(len(qkv), llama.key_start)
        for block in tree.blocks:
            heads = _Heads(qkv, prefix, block, llama)
            heads.scatter(heads.attend(heads.probabilities()), out)
        ctx.save_for_backward(qkv, prefix, out)
        ctx.tree, ctx.llama = tree, llama
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        qkv, prefix, out = ctx.saved_tensors
        d_qkv = torch.empty_like(qkv)
        d_prefix = None if prefix is None else torch.zeros_like(prefix)
        for block in ctx.tree.blocks:
            _Heads(qkv, prefix, block, ctx.llama).backward(grad, out, d_qkv, d_prefix)
        return d_qkv, d_prefix, None, None


class _Heads:
    """A block's queries, keys and values by head, and those of its ancestors."""

    def __init__(self, qkv: Tensor, prefix: Tensor | None, block: Block, llama: Llama) -> None:
        self.block = block
        self.k, self.d, self.scale = llama.kv_heads, llama.head_size, llama.scale
        self.start = llama.key_start
        self.r, self.t = block.rows.shape
        q, keys, values = self._split(qkv[block.rows])
        self.q = q.mul_(self.scale)  # (K, R, M, D)
        self.keys, self.values = keys, values  # (K, R, T, D)
        above = qkv[block.above.start : block.above.stop, self.start :]
        above = above if prefix is None else torch.cat([prefix, above])
        far = above.view(len(above), 2, self.k, self.d).permute(1, 2, 0, 3)
        self.far_keys, self.far_values = far  # (K, A, D)
        self.a = len(above)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R, T, (Q + 2K) x D) to queries (K, R, M, D), keys and values (K, R, T, D)."""
        q, keys, values = torch.split(rows, [self.start, self.k * self.d, self.k * self.d], dim=-1)
        keys, values = (x.view(self.r, self.t, self.k, self.d).permute(2, 0, 1, 3) for x in (keys, values))
        return self._by_head(q), keys, values

    def _by_head(self, rows: Tensor) -> Tensor:
        """(R, T, Q x D) to (K, R, M, D): the query heads that share keys stand together."""
        heads = rows.view(self.r, self.t, self.k, -1, self.d).permute(2, 0, 3, 1, 4)
        return heads.reshape(self.k, self.r, -1, self.d)

    def _by_row(self, heads: Tensor) -> Tensor:
        """The inverse of `_by_head`, flat: (R x T, Q x D)."""
        rows = heads.view(self.k, self.r, -1, self.t, self.d).permute(1, 3, 0, 2, 4)
        return rows.reshape(self.r * self.t, -1)

    def scatter(self, heads: Tensor, out: Tensor) -> None:
        """Put (K, R, M, D) where their tokens stand in the (N, Q x D) flat row."""
        out[self.block.places] = self._by_row(heads)[self.block.real]

    def probabilities(self) -> Tensor:
        """(K, R, M, A + T)."""
        after = torch.ones(self.t, self.t, dtype=torch.bool, device=self.q.device).triu(1)
        near = self.q @ self.keys.transpose(2, 3)
        near.view(self.k, self.r, -1, self.t, self.t).masked_fill_(after, -torch.inf)
        far = self._flat(self.q) @ self.far_keys.transpose(1, 2)  # all sequences in one product
        scores = torch.cat([far.view(*near.shape[:-1], self.a), near], dim=-1)
        return scores.softmax(-1)

    def attend(self, p: Tensor) -> Tensor:
        """(K, R, M, D): the values that the probabilities pick."""
        out = p[..., self.a :] @ self.values
        out += (self._flat(p[..., : self.a]) @ self.far_values).view_as(out)
        return out

    def backward(self, grad: Tensor, out: Tensor, d_qkv: Tensor, d_prefix: Tensor | None) -> None:
        """Write the gradients of the block's own tokens, for the (N, Q x D) gradient of `out`, and add
        those of its ancestors, which have been written before."""
        p = self.probabilities()
        rows = self.block.rows
        d = self._by_head(self._without_padding(grad[rows]))  # (K, R, M, D)
        along = (d * self._by_head(out[rows])).sum(-1, keepdim=True)  # (K, R, M, 1)
        far, near = self._flat(p[..., : self.a]), p[..., self.a :]
        d_far = (self._flat(d) @ self.far_values.transpose(1, 2)).sub_(self._flat(along)).mul_(far)
        d_near = (d @ self.values.transpose(2, 3)).sub_(along).mul_(near)
        d_q = d_near @ self.keys
        d_q += (d_far @ self.far_keys).view_as(d_q)
        d_keys, d_values = d_near.transpose(2, 3) @ self.q, near.transpose(2, 3) @ d
        self._write(d_q.mul_(self.scale), d_keys, d_values, d_qkv)
        above = torch.stack([d_far.transpose(1, 2) @ self._flat(self.q), far.transpose(1, 2) @ self._flat(d)])
        above = above.permute(2, 0, 1, 3).flatten(1)  # (A, 2K x D)
        shared = 0 if d_prefix is None else len(d_prefix)
        if d_prefix is not None:
            d_prefix += above[:shared]
        d_qkv[self.block.above.start : self.block.above.stop, self.start :] += above[shared:]

    def _flat(self, heads: Tensor) -> Tensor:
        """(K, R, M, x) to (K, R x M, x)."""
        return heads.flatten(1, 2)

    def _without_padding(self, rows: Tensor) -> Tensor:
        kept = torch.zeros_like(rows).flatten(0, 1)
        kept[self.block.real] = rows.flatten(0, 1)[self.block.real]
        return kept.view_as(rows)

    def _write(self, d_q: Tensor, d_keys: Tensor, d_values: Tensor, d_qkv: Tensor) -> None:
        keys, values = (x.permute(1, 2, 0, 3).reshape(self.r * self.t, -1) for x in (d_keys, d_values))
        rows = torch.cat([self._by_row(d_q), keys, values], dim=-1)
        d_qkv[self.block.places] = rows[self.block.real]
