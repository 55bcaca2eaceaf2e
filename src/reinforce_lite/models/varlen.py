"""Variable-length attention: segments of different lengths lie end to end, and the host never waits.

Segment i of the queries attends to segment i of the keys. The log-sum-exp of the scores is returned too, so
that attention to several sets of keys can be merged; its backward pass takes the merged output and
log-sum-exp and returns one set's gradient (`attention.py` has the formulas).

On a CUDA device in half precision both directions are FlashAttention-2 (Dao 2023,
https://arxiv.org/abs/2307.08691), one call each, without padding or copies. Where it refuses the
inputs, attention is written out with float32 scores, some segments and queries at a time, which bounds the
memory of the scores.

Shapes: N queries and S keys, n segments, Q query heads, K key-value heads, G = Q / K, D head size; c segments
of a chunk, with M queries and L keys each.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_SCORES = 2**26
"""Scores that the written-out attention holds at a time."""
MAX_FLASH_HEAD_SIZE = 256
FLASH_CAPABILITY = (8, 0)
"""FlashAttention-2 needs an Ampere card or a later one."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the segments lie. The tensors are int32, on the device. Every segment with queries has keys."""

    query_starts: Tensor
    """(n + 1,): segment i has the queries from its start up to the start of segment i + 1."""
    key_starts: Tensor
    """(n + 1,): likewise for keys. With `used_keys` they need not ascend, and the last one is not used."""
    longest_query: int
    """The most queries of a segment, or more."""
    longest_key: int
    """The most keys of a segment, or more."""
    used_keys: Tensor | None = None
    """(n,): how many keys, from its start on, each segment attends to; for the forward pass alone."""


def attend(
    q: Tensor, keys: Tensor, values: Tensor, segments: Segments, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """softmax(q keys^T scale) values within segments: the (N, Q, D) output, and (N, Q) log-sum-exps.

    q is (N, Q, D), keys and values are (S, K, D). The log-sum-exps are in at least float32. With `causal` the
    m-th query of a segment attends to its first m keys; it has as many queries as keys.
    """
    if _can_use_flash(q):
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(q, keys, values, segments.query_starts, segments.key_starts),
            *(segments.longest_query, segments.longest_key, 0.0, causal, False),
            scale=scale,
            seqused_k=segments.used_keys,
        )
        return out, lse.t()
    # Padding is written to one more query, which is cut off: skipping it would wait for how much there is.
    out = q.new_empty(len(q) + 1, *q.shape[1:])
    lse = q.new_empty(*out.shape[:2], 1, dtype=torch.promote_types(q.dtype, torch.float32))
    for chunk in _chunks(q, keys, segments, causal):
        scores = chunk.scores(q, keys, scale)
        chunk_lse = scores.logsumexp(-1, keepdim=True)
        p = scores.sub_(chunk_lse).exp_()
        chunk.scatter_queries(p @ chunk.gather_keys(values), out)
        chunk.scatter_queries(chunk_lse, lse)
    return out[:-1], lse[:-1, :, 0]


def attend_backward(  # noqa: PLR0913, PLR0917 what FlashAttention's backward pass takes
    grad: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    merged: tuple[Tensor, Tensor],
    segments: Segments,
    scale: float,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, keys and values, from the (N, Q, D) gradient of the merged output.

    `merged` is the output and log-sum-exp over all keys that the queries attend to, these and others.
    """
    out, lse = merged
    if _can_use_flash(q):
        no_dropout = torch.empty(2, dtype=torch.uint64, device=q.device)
        d_q, d_keys, d_values = torch.ops.aten._flash_attention_backward(
            *(grad, q, keys, values, out, lse.t().contiguous(), segments.query_starts, segments.key_starts),
            *(segments.longest_query, segments.longest_key, 0.0, causal, no_dropout, no_dropout[:0]),
            scale=scale,
        )
        return d_q, d_keys, d_values
    d_q = q.new_empty(len(q) + 1, *q.shape[1:])
    d_keys, d_values = (torch.zeros_like(x, dtype=lse.dtype) for x in (keys, values))
    for chunk in _chunks(q, keys, segments, causal):
        chunk_q, chunk_grad, chunk_out = (chunk.gather_queries(x) for x in (q, grad, out))
        p = chunk.scores(q, keys, scale).sub_(chunk.gather_queries(lse[..., None])).exp_()
        chunk.clear_padding(p)
        delta = (chunk_grad * chunk_out).sum(-1, keepdim=True)
        d = (chunk_grad @ chunk.gather_keys(values).mT).sub_(delta).mul_(p).mul_(scale)
        chunk.scatter_queries(d @ chunk.gather_keys(keys), d_q)
        chunk.add_to_keys(d.mT @ chunk_q, d_keys)
        chunk.add_to_keys(p.mT @ chunk_grad, d_values)
    return d_q[:-1], d_keys.to(keys.dtype), d_values.to(values.dtype)


def _can_use_flash(q: Tensor) -> bool:
    return (
        q.is_cuda
        and q.dtype in {torch.float16, torch.bfloat16}
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= MAX_FLASH_HEAD_SIZE
        and torch.cuda.get_device_capability(q.device) >= FLASH_CAPABILITY
    )


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some queries of some segments, and all keys of these segments, padded."""

    queries: Tensor
    """(c, M) flat indices; N for padding."""
    keys: Tensor
    """(c, L) flat indices; padding repeats a segment's first key."""
    padding: Tensor
    """(c, 1, 1, M, 1): which queries are padding."""
    masked: Tensor
    """(c, 1, 1, M or 1, L): which keys are not attended to."""
    kv_heads: int

    def gather_queries(self, x: Tensor) -> Tensor:
        """(N, Q, F) to (c, K, G x M, F), in at least float32."""
        c, m = self.queries.shape
        padded = x[self.queries.clamp(max=len(x) - 1)].view(c, m, self.kv_heads, -1, x.shape[-1])
        return padded.permute(0, 2, 3, 1, 4).flatten(2, 3).to(torch.promote_types(x.dtype, torch.float32))

    def scatter_queries(self, padded: Tensor, flat: Tensor) -> None:
        """The inverse: (c, K, G x M, F) to (N + 1, Q, F)."""
        flat[self.queries] = self._by_group(padded).permute(0, 3, 1, 2, 4).flatten(2, 3).to(flat.dtype)

    def gather_keys(self, x: Tensor) -> Tensor:
        """(S, K, D) to (c, K, L, D), in at least float32."""
        return x[self.keys].transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32))

    def add_to_keys(self, padded: Tensor, flat: Tensor) -> None:
        """Add (c, K, L, D), which is 0 for padding, to (S, K, D)."""
        flat.index_add_(0, self.keys.flatten(), padded.transpose(1, 2).flatten(0, 1))

    def scores(self, q: Tensor, keys: Tensor, scale: float) -> Tensor:
        """(c, K, G x M, L), in at least float32; -inf for a key that is not attended to."""
        scores = (self.gather_queries(q) @ self.gather_keys(keys).mT).mul_(scale)
        self._by_group(scores).masked_fill_(self.masked, -torch.inf)
        return scores

    def clear_padding(self, p: Tensor) -> None:
        """Set the (c, K, G x M, L) probabilities of padded queries to 0."""
        self._by_group(p).masked_fill_(self.padding, 0.0)

    def _by_group(self, x: Tensor) -> Tensor:
        """(c, K, G x M, F) to (c, K, G, M, F)."""
        return x.view(*x.shape[:2], -1, self.queries.shape[1], x.shape[-1])


def _chunks(q: Tensor, keys: Tensor, segments: Segments, causal: bool) -> Iterator[_Chunk]:
    """All queries of all segments, as many at a time as MAX_SCORES allows."""
    starts, counts = segments.query_starts[:-1], segments.query_starts.diff()
    key_starts = segments.key_starts[:-1]
    key_counts = segments.key_starts.diff() if segments.used_keys is None else segments.used_keys
    key_offsets = torch.arange(segments.longest_key, device=q.device)
    (_, heads, size), (_, kv_heads, _) = q.shape, keys.shape
    length = max(1, min(segments.longest_query, MAX_SCORES // (heads * segments.longest_key)))
    cost = segments.longest_key * (heads * length + kv_heads * size)  # of a segment: scores and keys
    rows = max(1, MAX_SCORES // cost)
    for first in range(0, len(starts), rows):
        part = slice(first, first + rows)
        unused = key_offsets >= key_counts[part, None]  # (c, L)
        chunk_keys = key_starts[part, None] + key_offsets.masked_fill(unused, 0)
        for start in range(0, segments.longest_query, length):
            offsets = torch.arange(start, min(start + length, segments.longest_query), device=q.device)
            padding = offsets >= counts[part, None]  # (c, M)
            queries = (starts[part, None] + offsets).masked_fill(padding, len(q))
            masked = unused[:, None]
            if causal:
                masked = masked | (key_offsets > offsets[:, None])
            yield _Chunk(
                queries, chunk_keys, padding[:, None, None, :, None], masked[:, None, None], kv_heads
            )
