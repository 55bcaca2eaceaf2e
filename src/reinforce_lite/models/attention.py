"""Attention computed in parts, each over some of the keys, and merged exactly.

Completions share most of the keys that they attend to. All of them attend to the shared keys in one product,
and each to its own tokens. The softmax over all keys is the sum of the parts, each weighted by its share of
the exponentials (Juravsky et al. 2024, "Hydragen", https://arxiv.org/abs/2402.05099):

    lse = log(exp(lse_a) + exp(lse_b))        out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b

The backward pass needs no merging: from the merged `out` and `lse` each part recomputes its probabilities
and has its own gradient (Dao et al. 2022, "FlashAttention", https://arxiv.org/abs/2205.14135).

On a CPU both directions are torch's fused kernels, which compute scores in float32 and never hold them all.
Elsewhere they are written out, for a chunk of queries at a time to bound the memory of the scores.

Shapes: B any batch, H heads, M queries, S keys, D head size.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PartialAttention = tuple[Tensor, Tensor]
"""out, (B, H, M, D): the weighted mean of the values; and lse, (B, H, M): the log of the sum of the
exponentials of the scores, in at least float32."""

MAX_SCORES = 2**24
"""Scores that the written-out attention holds at a time."""
MIN_BFLOAT16_QUERIES = 768
"""Queries from which on the fused backward kernel is called in bfloat16: with fewer it splits them into
products so small that float32 is several times faster (docs/log.md)."""


def attend(
    q: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor | None = None, causal: bool = False
) -> PartialAttention:
    """softmax(q keys^T scale + bias) values, for (B, H, M, D) queries and (B, H, S, D) keys and values.

    `bias`, of the queries' dtype, broadcasts to (B, H, M, S); -inf masks a key, and every query must attend
    to at least one. With `causal` the m-th query attends to the first m keys.
    """
    if _use_fused_kernel(q):
        mask = None if bias is None else bias.expand(*bias.shape[:-2], q.shape[2], keys.shape[2])
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(q, keys, values, 0.0, causal, attn_mask=mask, scale=scale)
        return out, lse
    outs, lses = [], []
    for chunk in _query_chunks(q, keys):
        scores = _scores(q[:, :, chunk], keys, scale, causal, chunk.start)
        scores = scores if bias is None else scores.add_(bias)
        lses.append(scores.logsumexp(-1))
        outs.append(scores.sub_(lses[-1][..., None]).exp_().to(q.dtype) @ values)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def merge(parts: Sequence[PartialAttention]) -> PartialAttention:
    """Attention over the keys of all parts together."""
    if len(parts) == 1:
        return parts[0]
    lses = torch.stack([lse for _, lse in parts])
    merged_lse = lses.logsumexp(0)
    shares = (lses - merged_lse).exp_()[..., None]
    merged = parts[0][0] * shares[0]
    for (out, _), share in zip(parts[1:], shares[1:], strict=True):
        merged += out * share
    return merged.to(parts[0][0].dtype), merged_lse


def attend_backward(
    grad: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    merged: PartialAttention,
    scale: float,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One part's gradients for its queries, keys and values, from the (B, H, M, D) gradient of `merged`.

    A query whose `lse` is +inf is ignored.
    """
    if _use_fused_kernel(q):
        large = q.shape[2] >= MIN_BFLOAT16_QUERIES
        dtype = q.dtype if large else torch.promote_types(q.dtype, torch.float32)
        inputs = (t.to(dtype) for t in (grad, q, keys, values, merged[0]))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        d_q, d_keys, d_values = (t.to(q.dtype) for t in kernel(*inputs, merged[1], 0.0, causal, scale=scale))
        return d_q, d_keys, d_values
    out, lse = merged
    d_q = torch.empty_like(q)
    d_keys, d_values = (torch.zeros_like(t, dtype=lse.dtype) for t in (keys, values))
    for chunk in _query_chunks(q, keys):
        q_chunk, grad_chunk = q[:, :, chunk], grad[:, :, chunk]
        p = _scores(q_chunk, keys, scale, causal, chunk.start).sub_(lse[:, :, chunk, None]).exp_()
        delta = (grad_chunk * out[:, :, chunk]).sum(-1, keepdim=True, dtype=p.dtype)
        d = (grad_chunk @ values.transpose(-1, -2)).to(p.dtype).sub_(delta).mul_(p).mul_(scale).to(q.dtype)
        d_q[:, :, chunk] = d @ keys
        d_keys += d.transpose(-1, -2) @ q_chunk
        d_values += p.to(q.dtype).transpose(-1, -2) @ grad_chunk
    return d_q, d_keys.to(q.dtype), d_values.to(q.dtype)


def _use_fused_kernel(q: Tensor) -> bool:
    return q.device.type == "cpu"


def _query_chunks(q: Tensor, keys: Tensor) -> Iterator[slice]:
    size = max(1, MAX_SCORES // (q.shape[0] * q.shape[1] * keys.shape[2]))
    for start in range(0, q.shape[2], size):
        yield slice(start, start + size)


def _scores(q: Tensor, keys: Tensor, scale: float, causal: bool, start: int) -> Tensor:
    """(B, H, M, S), in at least float32; `start` is the index of the first of the queries."""
    scores = (q @ keys.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(start + 1)
        scores.masked_fill_(later, -torch.inf)
    return scores
