"""Attention over a prefix tree: all tokens attend to shared keys in one product, without copies of them.

On a CUDA device it is three calls of variable-length attention, merged: each token to its own sequence, the
completions to their prompts, all to the prefix. Elsewhere the sequences are padded to blocks of similar
length, which is faster with the kernels of a CPU.

Shapes: N flat tokens, R sequences of a block with up to T tokens, S tokens of the prefix; Q query heads,
K key-value heads, D head size.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from reinforce_lite.models import elementwise, varlen
from reinforce_lite.models.attention import PartialAttention, attend, attend_backward, merge
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.prefix_tree import PrefixTree

ALL = slice(None)


class PrefixAttention:
    """An `Attend` over a tree: causal within a sequence, full attention to its prompt and the prefix."""

    def __init__(
        self,
        llama: Llama,
        tree: PrefixTree,
        prefix: Sequence[Tensor] = (),
        keep: Callable[[int, Tensor], None] = lambda layer, kv: None,
    ) -> None:
        """`prefix` has each layer's (S, 2K x D) keys and values of the prefix, if there is one. `keep` is
        called with each layer's index and the (N, 2K x D) keys and values of the tree's own tokens."""
        self.llama, self.tree, self.prefix, self.keep = llama, tree, prefix, keep

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """(N, (Q + 2K) x D) rotated queries and keys, and values, to (N, Q x D)."""
        self.keep(layer, qkv[:, self.llama.key_start :])
        prefix = self.prefix[layer] if self.prefix else None
        function = _SegmentsAttention if qkv.is_cuda else _BlocksAttention
        out: Tensor = function.apply(qkv, prefix, self.tree, self.llama)  # type: ignore[no-untyped-call]
        return out


class _SegmentsAttention(Function):
    """As `_BlocksAttention`, without blocks."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, prefix: Tensor | None, tree: PrefixTree, llama: Llama) -> Tensor:
        q, keys, values = _split_heads(qkv, llama)
        segments, start = tree.segments, tree.segments.prompt_tokens
        own = varlen.attend(q, keys, values, segments.own, llama.scale, causal=True)
        parts = [own]
        if prefix is not None:
            assert segments.to_prefix is not None
            shared_keys, shared_values = _split_heads(prefix, llama)
            parts.append(varlen.attend(q, shared_keys, shared_values, segments.to_prefix, llama.scale))
        completions = [(out[start:], lse[start:]) for out, lse in parts]
        if segments.to_prompts is not None:
            part = varlen.attend(q[start:], keys[:start], values[:start], segments.to_prompts, llama.scale)
            completions.append(part)
        _merge_into_first([(out[:start], lse[:start]) for out, lse in parts])
        _merge_into_first(completions)
        out, lse = own
        ctx.save_for_backward(qkv, prefix, out, lse)
        ctx.segments, ctx.llama = segments, llama
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        qkv, prefix, out, lse = ctx.saved_tensors
        segments, llama, start = ctx.segments, ctx.llama, ctx.segments.prompt_tokens
        q, keys, values = _split_heads(qkv, llama)
        grad = grad.view_as(q)
        own = varlen.attend_backward(
            grad, q, keys, values, (out, lse), segments.own, llama.scale, causal=True
        )
        d_qkv = torch.cat(own, dim=1).flatten(1)
        d_q, d_keys, d_values = _split_heads(d_qkv, llama)
        if segments.to_prompts is not None:
            part = varlen.attend_backward(
                grad[start:],
                q[start:],
                keys[:start],
                values[:start],
                (out[start:], lse[start:]),
                segments.to_prompts,
                llama.scale,
            )
            for total, d in zip((d_q[start:], d_keys[:start], d_values[:start]), part, strict=True):
                total += d
        if prefix is None:
            return d_qkv, None, None, None
        shared_keys, shared_values = _split_heads(prefix, llama)
        part = varlen.attend_backward(
            grad, q, shared_keys, shared_values, (out, lse), segments.to_prefix, llama.scale
        )
        d_q += part[0]
        return d_qkv, torch.cat(part[1:], dim=1).flatten(1), None, None


def _merge_into_first(parts: Sequence[PartialAttention]) -> None:
    """Write the attention over the keys of all parts, (n, Q, D) and (n, Q), into the first of them."""
    out, lse = parts[0]
    if len(parts) > 1 and len(out):
        out.copy_(elementwise.merge(*chain.from_iterable(parts)))
        lse.copy_(reduce(torch.logaddexp, [other for _, other in parts]))


class _BlocksAttention(Function):
    """softmax(Q K^T scale) V. Keeps inputs and outputs; probabilities are recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, prefix: Tensor | None, tree: PrefixTree, llama: Llama) -> Tensor:
        heads = _Heads(qkv, llama)
        parts = [heads.attend_to_sequence(tree)]
        if tree.completions:
            parts.append(heads.attend_to_prompts(tree))
        if prefix is not None:
            parts.append(heads.attend_to_shared(ALL, *_split_heads(prefix, llama)))
        out, lse = merge(parts)  # (N, Q, D) and (N, Q)
        ctx.save_for_backward(qkv, prefix, out, lse)
        ctx.tree, ctx.llama = tree, llama
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        qkv, prefix, out, lse = ctx.saved_tensors
        heads = _Heads(qkv, ctx.llama)
        gradient = _HeadsGradient(heads, grad.view_as(heads.q), (out, lse))
        gradient.write_sequences(ctx.tree)
        for completions, prompt in ctx.tree.completions:
            d_keys, d_values = gradient.add_shared(completions, heads.keys[prompt], heads.values[prompt])
            gradient.d_keys[prompt] += d_keys
            gradient.d_values[prompt] += d_values
        if prefix is None:
            return gradient.d_qkv, None, None, None
        d_prefix = torch.cat(gradient.add_shared(ALL, *_split_heads(prefix, ctx.llama)), dim=1).flatten(1)
        return gradient.d_qkv, d_prefix, None, None


def _split_heads(flat: Tensor, llama: Llama) -> tuple[Tensor, ...]:
    """(N, heads x D) as views (N, heads, D): queries if there are any, keys, and values."""
    heads = flat.view(len(flat), -1, llama.head_size)
    k = llama.kv_heads
    parts = torch.split(heads, [heads.shape[1] - 2 * k, k, k], dim=1)
    return parts if parts[0].shape[1] else parts[1:]


class _Heads:
    """The queries, keys and values of a tree by head, and the parts of its attention."""

    def __init__(self, qkv: Tensor, llama: Llama) -> None:
        self.llama, self.scale = llama, llama.scale
        self.q, self.keys, self.values = _split_heads(qkv, llama)  # (N, Q, D), (N, K, D) twice
        self.lse_dtype = torch.promote_types(qkv.dtype, torch.float32)

    def repeat_kv(self, x: Tensor) -> Tensor:
        """(..., K, tokens, D) keys or values to (..., Q, tokens, D), one for each query head."""
        return x.repeat_interleave(self.llama.query_heads // self.llama.kv_heads, dim=-3)

    def attend_to_shared(self, queries: slice, keys: Tensor, values: Tensor) -> PartialAttention:
        """n tokens' attention to (S, K, D) keys and values that all of them see: (n, Q, D) and (n, Q)."""
        q, keys, values = (x.transpose(0, 1)[None] for x in (self.q[queries], keys, values))
        out, lse = attend(q, self.repeat_kv(keys), self.repeat_kv(values), self.scale)
        return out[0].transpose(0, 1), lse[0].transpose(0, 1)

    def attend_to_sequence(self, tree: PrefixTree) -> PartialAttention:
        """Each token's causal attention to its own sequence: (N, Q, D) and (N, Q)."""
        out = self.q.new_empty(self.q.shape)
        lse = self.q.new_empty(out.shape[:2], dtype=self.lse_dtype)
        for block in tree.blocks:
            q, keys, values = (block.gather(x) for x in (self.q, self.keys, self.values))
            part = attend(q, self.repeat_kv(keys), self.repeat_kv(values), self.scale, causal=True)
            block.scatter(part[0], out)
            block.scatter(part[1], lse)
        return out, lse

    def attend_to_prompts(self, tree: PrefixTree) -> PartialAttention:
        """The completions' attention to their prompts, (N, Q, D) and (N, Q): 0 and -inf for other tokens."""
        out = self.q.new_zeros(self.q.shape)
        lse = self.q.new_full(out.shape[:2], -torch.inf, dtype=self.lse_dtype)
        for completions, prompt in tree.completions:
            part = self.attend_to_shared(completions, self.keys[prompt], self.values[prompt])
            out[completions], lse[completions] = part
        return out, lse


class _HeadsGradient:
    """The gradient of a tree's queries, keys and values, collected part by part."""

    def __init__(self, heads: _Heads, grad: Tensor, merged: PartialAttention) -> None:
        """`grad` is the gradient with respect to the (N, Q, D) output of `merged`."""
        self.heads, self.grad, (self.out, self.lse) = heads, grad, merged
        llama = heads.llama
        self.d_qkv = grad.new_empty(len(grad), llama.key_start + 2 * llama.kv_heads * llama.head_size)
        self.d_q, self.d_keys, self.d_values = _split_heads(self.d_qkv, llama)

    def write_sequences(self, tree: PrefixTree) -> None:
        """Write the gradient of each token's attention to its own sequence. Must come first."""
        h = self.heads
        for block in tree.blocks:
            inputs = (self.grad, h.q, h.keys, h.values, self.out)
            grad, q, keys, values, out = (block.gather(x) for x in inputs)
            lse = block.gather(self.lse).masked_fill(~block.valid[:, None], torch.inf)
            keys, values = h.repeat_kv(keys), h.repeat_kv(values)
            d_q, d_keys, d_values = attend_backward(grad, q, keys, values, (out, lse), h.scale, causal=True)
            block.scatter(d_q, self.d_q)
            block.scatter(self._sum_query_heads(d_keys), self.d_keys)
            block.scatter(self._sum_query_heads(d_values), self.d_values)

    def add_shared(self, queries: slice, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """Attention to (S, K, D) shared keys and values: add the queries' gradient, and return theirs."""
        h = self.heads
        inputs = (self.grad[queries], h.q[queries], keys, values, self.out[queries], self.lse[queries])
        grad, q, keys, values, out, lse = (x.transpose(0, 1)[None] for x in inputs)
        keys, values = h.repeat_kv(keys), h.repeat_kv(values)
        d_q, *d_kv = attend_backward(grad, q, keys, values, (out, lse), h.scale)
        self.d_q[queries] += d_q[0].transpose(0, 1)
        return tuple(self._sum_query_heads(d)[0].transpose(0, 1) for d in d_kv)

    def _sum_query_heads(self, d: Tensor) -> Tensor:
        """(B, Q, S, D) to (B, K, S, D): the sum over the query heads that share a key-value head."""
        return d.view(len(d), self.heads.llama.kv_heads, -1, *d.shape[2:]).sum(2)
