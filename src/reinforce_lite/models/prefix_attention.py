"""Attention over a prefix tree: what is shared is attended to by all tokens at once and never copied.

Shapes: N flat tokens, R sequences of a block with up to T tokens, S tokens of the prefix; Q query heads,
K heads of keys and values, D head size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from reinforce_lite.models.attention import PartialAttention, attend, attend_backward, merge
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.prefix_tree import PrefixTree


class PrefixAttention:
    """Attention over a tree, as `Llama` asks for it: causal within a sequence, whole above it."""

    def __init__(
        self,
        llama: Llama,
        tree: PrefixTree,
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
    """softmax(Q K^T scale) V; keeps what came out, and makes the probabilities again to go back."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, prefix: Tensor | None, tree: PrefixTree, llama: Llama) -> Tensor:
        heads = _Heads(qkv, llama)
        parts = [heads.attend_to_own(tree)]
        if tree.answers:
            parts.append(heads.attend_to_prompts(tree))
        if prefix is not None:
            parts.append(heads.attend(slice(None), *_split(prefix, llama)))
        out, lse = merge(parts)  # (N, Q, D) and (N, Q)
        ctx.save_for_backward(qkv, prefix, out, lse)
        ctx.tree, ctx.llama = tree, llama
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        qkv, prefix, *whole = ctx.saved_tensors
        heads = _Heads(qkv, ctx.llama)
        back = _Backward(heads, grad.view_as(heads.q), (whole[0], whole[1]))
        back.own(ctx.tree)
        for answers, prompt in ctx.tree.answers:
            d_keys, d_values = back.shared(answers, heads.keys[prompt], heads.values[prompt])
            back.d_keys[prompt] += d_keys
            back.d_values[prompt] += d_values
        if prefix is None:
            return back.d_qkv, None, None, None
        d_prefix = torch.cat(back.shared(slice(None), *_split(prefix, ctx.llama)), dim=1).flatten(1)
        return back.d_qkv, d_prefix, None, None


def _split(rows: Tensor, llama: Llama) -> tuple[Tensor, ...]:
    """(N, heads x D), the last 2K of them keys and values, as views (N, heads of each, D)."""
    heads = rows.view(len(rows), -1, llama.head_size)
    k = llama.kv_heads
    parts = torch.split(heads, [heads.shape[1] - 2 * k, k, k], dim=1)
    return parts if parts[0].shape[1] else parts[1:]


class _Heads:
    """A tree's queries, keys and values by head."""

    def __init__(self, qkv: Tensor, llama: Llama) -> None:
        self.llama, self.scale = llama, llama.scale
        self.q, self.keys, self.values = _split(qkv, llama)  # (N, Q, D), (N, K, D) twice
        self.fine = torch.promote_types(qkv.dtype, torch.float32)

    def as_queries(self, x: Tensor) -> Tensor:
        """(..., K, rows, D) keys or values, once for each query head that they serve."""
        return x.repeat_interleave(self.llama.query_heads // self.llama.kv_heads, dim=-3)

    def attend(self, queries: slice, keys: Tensor, values: Tensor) -> PartialAttention:
        """Some tokens' attention to (S, K, D) keys and values that all of them see: (n, Q, D) and (n, Q)."""
        q, keys, values = (x.transpose(0, 1)[None] for x in (self.q[queries], keys, values))
        out, lse = attend(q, self.as_queries(keys), self.as_queries(values), self.scale)
        return out[0].transpose(0, 1), lse[0].transpose(0, 1)

    def attend_to_own(self, tree: PrefixTree) -> PartialAttention:
        """Each token's attention to its own sequence: (N, Q, D) and (N, Q)."""
        out = self.q.new_empty(self.q.shape)
        lse = self.q.new_empty(out.shape[:2], dtype=self.fine)
        for block in tree.blocks:
            q, keys, values = (block.gather(x) for x in (self.q, self.keys, self.values))
            made = attend(q, self.as_queries(keys), self.as_queries(values), self.scale, causal=True)
            block.scatter(made[0], out)
            block.scatter(made[1], lse)
        return out, lse

    def attend_to_prompts(self, tree: PrefixTree) -> PartialAttention:
        """The completions' attention to their prompts, and none of all other tokens: (N, Q, D) and (N, Q)."""
        out = self.q.new_zeros(self.q.shape)
        lse = self.q.new_full(out.shape[:2], -torch.inf, dtype=self.fine)
        for answers, prompt in tree.answers:
            out[answers], lse[answers] = self.attend(answers, self.keys[prompt], self.values[prompt])
        return out, lse


class _Backward:
    """The gradient of a tree's attention, gathered part by part."""

    def __init__(self, heads: _Heads, grad: Tensor, whole: PartialAttention) -> None:
        """`grad` is with respect to the (N, Q, D) of the `whole`."""
        self.heads, self.grad, self.whole = heads, grad, whole
        llama = heads.llama
        self.d_qkv = grad.new_empty(len(grad), llama.key_start + 2 * llama.kv_heads * llama.head_size)
        self.d_q, self.d_keys, self.d_values = _split(self.d_qkv, llama)

    def own(self, tree: PrefixTree) -> None:
        """Write what comes from each token's attention to its own sequence."""
        for block in tree.blocks:
            h = self.heads
            grad, q, keys, values, out = (
                block.gather(x) for x in (self.grad, h.q, h.keys, h.values, self.whole[0])
            )
            lse = block.gather(self.whole[1]).masked_fill(~block.real[:, None], torch.inf)
            keys, values = h.as_queries(keys), h.as_queries(values)
            made = attend_backward(grad, q, keys, values, (out, lse), h.scale, causal=True)
            block.scatter(made[0], self.d_q)
            block.scatter(self._of_keys(made[1]), self.d_keys)
            block.scatter(self._of_keys(made[2]), self.d_values)

    def shared(self, queries: slice, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add what comes to some queries from (S, K, D) keys and values, and return what comes to these."""
        h = self.heads
        given = (
            self.grad[queries],
            h.q[queries],
            keys,
            values,
            self.whole[0][queries],
            self.whole[1][queries],
        )
        grad, q, keys, values, out, lse = (x.transpose(0, 1)[None] for x in given)
        keys, values = h.as_queries(keys), h.as_queries(values)
        d_q, *d = attend_backward(grad, q, keys, values, (out, lse), h.scale)
        self.d_q[queries] += d_q[0].transpose(0, 1)
        d_keys, d_values = (self._of_keys(x)[0].transpose(0, 1) for x in d)
        return d_keys, d_values

    def _of_keys(self, d: Tensor) -> Tensor:
        """(B, Q, S, D) to (B, K, S, D): the sum over the query heads that a head of keys serves."""
        return d.view(len(d), self.heads.llama.kv_heads, -1, *d.shape[2:]).sum(2)
