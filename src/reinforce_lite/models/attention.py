"""Attention in parts, each over some of the keys, put together exactly.

Answers share most of what they attend to. They attend to that in one product for them all, and to their
own tokens beside it. The softmax over both is the sum of the two, each weighted by what its exponentials
came to (Juravsky et al. 2024, "Hydragen"):

    lse = log(exp(lse_a) + exp(lse_b))        out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b

Backward the parts do not meet at all: given the whole `out` and `lse`, each makes its probabilities
again and has its own gradient (Dao et al. 2022, "FlashAttention").

On a processor both directions are torch's fused kernels, which keep scores in float32 and none of them in
memory. Elsewhere they are written out, for so many queries at once that their scores stay small.

Shapes: B any batch, H heads, M queries, S keys, D head size.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PartialAttention = tuple[Tensor, Tensor]
"""(B, H, M, D) weighted values, and (B, H, M) the log of the sum of their exponentials, float32 or finer."""

SCORES = 2**24
"""Scores that are held at once where they are written out."""
MANY = 768
"""Queries from which on the fused backward kernel takes them in large portions; with fewer its bfloat16
products are so small that float32 is several times faster (docs/log.md)."""


def attend(
    q: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor | None = None, causal: bool = False
) -> PartialAttention:
    """softmax(q keys^T scale + bias) values, for (B, H, M, D) queries and (B, H, S, D) keys and values.

    `bias`, of the queries' dtype, broadcasts to (B, H, M, S); -inf hides a key, and every query must see
    one. `causal` hides from the m-th query the keys behind the m-th.
    """
    if _fused(q):
        mask = None if bias is None else bias.expand(*bias.shape[:-2], q.shape[2], keys.shape[2])
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(q, keys, values, 0.0, causal, attn_mask=mask, scale=scale)
        return out, lse
    outs, sums = [], []
    for some in _portions(q, keys):
        scores = _scores(q[:, :, some], keys, scale, causal, some.start)
        scores = scores if bias is None else scores.add_(bias)
        sums.append(scores.logsumexp(-1))
        outs.append(scores.sub_(sums[-1][..., None]).exp_().to(q.dtype) @ values)
    return torch.cat(outs, dim=2), torch.cat(sums, dim=2)


def merge(parts: Sequence[PartialAttention]) -> PartialAttention:
    """Attention over the keys of all parts together."""
    if len(parts) == 1:
        return parts[0]
    sums = torch.stack([lse for _, lse in parts])
    whole = sums.logsumexp(0)
    shares = (sums - whole).exp_()[..., None]
    out = parts[0][0] * shares[0]
    for (part, _), share in zip(parts[1:], shares[1:], strict=True):
        out += part * share
    return out.to(parts[0][0].dtype), whole


def attend_backward(
    grad: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    whole: PartialAttention,
    scale: float,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A part's gradients for its queries, keys and values, from the (B, H, M, D) gradient of the whole.

    A query whose `lse` is +inf counts for nothing.
    """
    if _fused(q):
        dtype = q.dtype if q.shape[2] >= MANY else torch.promote_types(q.dtype, torch.float32)
        given = (t.to(dtype) for t in (grad, q, keys, values, whole[0]))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        d_q, d_keys, d_values = (t.to(q.dtype) for t in kernel(*given, whole[1], 0.0, causal, scale=scale))
        return d_q, d_keys, d_values
    out, lse = whole
    d_q = torch.empty_like(q)
    d_keys, d_values = (torch.zeros_like(t, dtype=lse.dtype) for t in (keys, values))
    for some in _portions(q, keys):
        some_q, some_grad = q[:, :, some], grad[:, :, some]
        p = _scores(some_q, keys, scale, causal, some.start).sub_(lse[:, :, some, None]).exp_()
        along = (some_grad * out[:, :, some]).sum(-1, keepdim=True, dtype=p.dtype)
        d = (some_grad @ values.transpose(-1, -2)).to(p.dtype).sub_(along).mul_(p).mul_(scale).to(q.dtype)
        d_q[:, :, some] = d @ keys
        d_keys += d.transpose(-1, -2) @ some_q
        d_values += p.to(q.dtype).transpose(-1, -2) @ some_grad
    return d_q, d_keys.to(q.dtype), d_values.to(q.dtype)


def _fused(q: Tensor) -> bool:
    return q.device.type == "cpu"


def _portions(q: Tensor, keys: Tensor) -> Iterator[slice]:
    size = max(1, SCORES // (q.shape[0] * q.shape[1] * keys.shape[2]))
    for start in range(0, q.shape[2], size):
        yield slice(start, start + size)


def _scores(q: Tensor, keys: Tensor, scale: float, causal: bool, start: int) -> Tensor:
    """(B, H, M, S), in at least float32, for the queries from `start` on."""
    scores = (q @ keys.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(start + 1)
        scores.masked_fill_(later, -torch.inf)
    return scores
