"""Prototype: attention over a prefix tree on a GPU by three variable-length calls, without padding or masks.

    own      every sequence (prompts, then completions) attends to itself, causally: one call over all tokens
    prompt   a prompt's completions attend to the whole prompt: one call over all completions
    prefix   every token attends to the whole shared prefix: one call

In the forward pass each part returns (output, log-sum-exp), and the parts are merged. In the backward pass
each part receives the merged output and log-sum-exp and returns its own gradient. On CUDA `attend` and
`attend_backward` are ATen's flash-attention kernels (Dao 2023, https://arxiv.org/abs/2307.08691), which take
half precision only; elsewhere they are plain torch, so that a test on a CPU checks indexing and arithmetic.

Shapes: N flat tokens, S keys of a part, Q query heads, K key and value heads, D head size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One variable-length call: segment i of the queries attends to segment i of the keys."""

    queries: slice
    """Flat positions of the queries."""
    keys: slice
    """Flat positions of the keys; in the third part, positions in the prefix."""
    query_offsets: Tensor
    """(segments + 1,) int32, on the device: where each segment of queries starts."""
    key_offsets: Tensor
    """(segments + 1,) int32, on the device."""
    max_queries: int
    max_keys: int
    causal: bool
    of_prefix: bool = False
    """Whether keys and values are those of the shared prefix."""


def layout(
    prompts: Sequence[int], completions: Sequence[Sequence[int]], prefix: int, device: torch.device
) -> list[Part]:
    """The calls for prompts of these lengths and, for each prompt, completions of these lengths.

    In the flat order all prompts come first, then all completions.
    """

    def offsets(lengths: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    own = [*prompts, *(length for group in completions for length in group)]
    n, first = sum(own), sum(prompts)
    everything = slice(0, n)
    parts = [Part(everything, everything, offsets(own), offsets(own), max(own), max(own), causal=True)]
    if n > first:
        groups = [sum(group) for group in completions]
        queries, keys = slice(first, n), slice(0, first)
        parts.append(
            Part(queries, keys, offsets(groups), offsets(prompts), max(groups), max(prompts), causal=False)
        )
    if prefix:
        keys = slice(0, prefix)
        parts.append(
            Part(everything, keys, offsets([n]), offsets([prefix]), n, prefix, causal=False, of_prefix=True)
        )
    return parts


def attend(q: Tensor, k: Tensor, v: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of (N, Q, D) to (S, K, D) keys and values: the (N, Q, D) output and (N, Q) log-sum-exps."""
    if q.is_cuda:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(q, k, v, part.query_offsets, part.key_offsets, part.max_queries, part.max_keys),
            *(0.0, part.causal, False),
            scale=scale,
        )
        return out, lse.t()
    outs, sums = [], []
    for queries, keys in segments(part):
        scores = attention_scores(q[queries], k[keys], scale, part.causal)
        sums.append(scores.logsumexp(-1).t())
        outs.append((scores.softmax(-1) @ by_query_head(v[keys], q)).transpose(0, 1).to(q.dtype))
    return torch.cat(outs), torch.cat(sums)


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, merged: tuple[Tensor, Tensor], part: Part, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A part's gradients for its queries, keys and values.

    `merged` is the output and log-sum-exp of all parts together.
    """
    out, lse = merged
    if q.is_cuda:
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)
        d_q, d_k, d_v = torch.ops.aten._flash_attention_backward(
            *(grad, q, k, v, out, lse.t().contiguous(), part.query_offsets, part.key_offsets),
            *(part.max_queries, part.max_keys, 0.0, part.causal, state, state[:0]),
            scale=scale,
        )
        return d_q, d_k, d_v
    d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

    def by_key_head(x: Tensor) -> Tensor:
        return x.view(k.shape[1], -1, *x.shape[1:]).sum(1).transpose(0, 1).to(k.dtype)

    for queries, keys in segments(part):
        scores = attention_scores(q[queries], k[keys], scale, part.causal)
        p = (scores - lse[queries].t()[..., None]).exp()
        segment_grad, segment_out = (x[queries].transpose(0, 1).to(p.dtype) for x in (grad, out))
        along = (segment_grad * segment_out).sum(-1, keepdim=True)
        d_scores = p * (segment_grad @ by_query_head(v[keys], q).transpose(-1, -2) - along) * scale
        d_q[queries] = (d_scores @ by_query_head(k[keys], q)).transpose(0, 1).to(q.dtype)
        d_k[keys] += by_key_head(d_scores.transpose(-1, -2) @ q[queries].transpose(0, 1).to(p.dtype))
        d_v[keys] += by_key_head(p.transpose(-1, -2) @ segment_grad)
    return d_q, d_k, d_v


def segments(part: Part) -> Iterator[tuple[slice, slice]]:
    """The segments of a part that have queries."""
    pairs = (pairwise(offsets.tolist()) for offsets in (part.query_offsets, part.key_offsets))
    for (start, stop), (key_start, key_stop) in zip(*pairs, strict=True):
        if stop > start:
            yield slice(start, stop), slice(key_start, key_stop)


def by_query_head(x: Tensor, q: Tensor) -> Tensor:
    """(S, K, D) keys or values as (Q, S, D) in at least float32, repeated for each query head."""
    repeated = x.transpose(0, 1).repeat_interleave(q.shape[1] // x.shape[1], 0)
    return repeated.to(torch.promote_types(x.dtype, torch.float32))


def attention_scores(q: Tensor, k: Tensor, scale: float, causal: bool) -> Tensor:
    """(Q, N, S), in at least float32."""
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = (q.transpose(0, 1).to(precise) @ by_query_head(k, q).transpose(-1, -2)) * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


class VarlenTreeAttention(torch.autograd.Function):
    """Attention of all tokens of a tree: `apply(q, k, v, prefix_k, prefix_v, parts, scale)`.

    q is (N, Q, D), k and v are (N, K, D), the prefix's keys and values (S, K, D) or None. Returns (N, Q, D).
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 one argument for each tensor that gets a gradient
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        prefix_k: Tensor | None,
        prefix_v: Tensor | None,
        parts: Sequence[Part],
        scale: float,
    ) -> Tensor:
        """Merge the parts two at a time: a sigmoid and a lerp."""
        outputs = []
        for part in parts:
            keys, values = (prefix_k, prefix_v) if part.of_prefix else (k, v)
            outputs.append(attend(q[part.queries], keys[part.keys], values[part.keys], part, scale))
        out = outputs[0][0].to(torch.promote_types(q.dtype, torch.float32))
        lse = outputs[0][1].clone()
        for part, (part_out, part_lse) in zip(parts[1:], outputs[1:], strict=True):
            share = torch.sigmoid(part_lse - lse[part.queries])[..., None].to(out.dtype)
            out[part.queries] = torch.lerp(out[part.queries], part_out.to(out.dtype), share)
            lse[part.queries] = torch.logaddexp(lse[part.queries], part_lse)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Add up what each part contributes."""
        q, k, v, prefix_k, prefix_v, out, lse = ctx.saved_tensors
        d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        d_prefix: tuple[Tensor | None, Tensor | None] = (None, None)
        for part in ctx.parts:
            keys, values = (prefix_k, prefix_v) if part.of_prefix else (k, v)
            rows = part.queries
            d_queries, d_keys, d_values = attend_backward(
                *(grad[rows], q[rows], keys[part.keys], values[part.keys], (out[rows], lse[rows])),
                *(part, ctx.scale),
            )
            d_q[rows] += d_queries
            if part.of_prefix:
                d_prefix = (d_keys, d_values)
            else:
                d_k[part.keys] += d_keys
                d_v[part.keys] += d_values
        return d_q, d_k, d_v, *d_prefix, None, None
