"""Attention of one new token per sequence to its own tokens and to its prompt, as one Triton kernel.

FlashAttention computes tiles of 128 queries, but in a decoding step a key-value head has only the M that
share it: most of its work is padding, and around it keys are written, queries copied and two parts merged.
This kernel does all of that, with tiles of 16 queries. As in FlashAttention (Dao 2023,
https://arxiv.org/abs/2307.08691), the softmax is kept up to date block by block of keys, in float32.

Where it can't be used, `static_cache.py` takes FlashAttention. Triton comes with torch on Linux.

Shapes: R sequences, Q query heads, K key-value heads, D head size, M = Q / K, S tokens of the cache.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton, tl = None, SimpleNamespace(constexpr=Any)

BLOCK_M, BLOCK_N = 16, 64
"""Queries and keys of a tile; tl.dot needs at least 16 rows."""
LOG2_E = 1.4426950408889634
"""Turns the scale of exp into that of exp2."""


def supports(kv: Tensor, group: int) -> bool:
    """Whether there is a kernel for a (..., K, D) cache, with M queries for each of its heads."""
    is_power_of_2 = kv.shape[-1] in {16, 32, 64, 128}
    half = kv.dtype in {torch.float16, torch.bfloat16}
    return triton is not None and kv.is_cuda and half and is_power_of_2 and group <= BLOCK_M


def attend_to_cache(
    qkv: Tensor, kv: Tensor, write_at: Tensor, key_starts: Tensor, used_keys: Tensor, scale: float
) -> Tensor:
    """Write the new keys and values of (R, (Q + 2K) x D) to the cache, and attend to it: (R, Q x D).

    `kv` is (S, 2, K, D), and sequence r writes to its position write_at[r]. Its own tokens, that one the last
    of them, are the used_keys[r] positions from key_starts[r] on; its prompt's are the used_keys[R + r]
    positions from key_starts[R + r] on. Both numbers are at least 1.
    """
    rows, (_, _, k, d) = len(qkv), kv.shape
    queries = qkv.shape[1] // d - 2 * k
    out = qkv.new_empty(rows, queries * d)
    _kernel[rows, k](
        *(qkv, kv, write_at, key_starts, used_keys, out, scale * LOG2_E, qkv.stride(0), rows),
        kv_heads=k,
        group=queries // k,
        head_size=d,
        block_m=BLOCK_M,
        block_n=BLOCK_N,
        num_warps=2,
        num_stages=2,
    )
    return out


# Triton reads annotations: a name that it does not know is a string.
def _attend(  # noqa: PLR0913, PLR0917
    qkv: "Any",
    kv: "Any",
    write_at: "Any",
    key_starts: "Any",
    used_keys: "Any",
    out: "Any",
    scale: "Any",
    row_stride: "Any",
    rows: "Any",
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_size: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
) -> None:
    """One program for each sequence and key-value head. `scale` includes log2(e), for exp2."""
    row, head = tl.program_id(0), tl.program_id(1)
    m, n, d = tl.arange(0, block_m), tl.arange(0, block_n), tl.arange(0, head_size)
    columns = (head * group + m)[:, None] * head_size + d[None, :]
    line = qkv + row * row_stride
    q = tl.load(line + columns, mask=m[:, None] < group, other=0.0)
    new_key = tl.load(line + (kv_heads * group + head) * head_size + d)
    new_value = tl.load(line + (kv_heads * group + kv_heads + head) * head_size + d)
    new_place = kv + tl.load(write_at + row) * (2 * kv_heads * head_size) + head * head_size + d
    tl.store(new_place, new_key)
    tl.store(new_place + kv_heads * head_size, new_value)
    # The softmax starts with the new token, and the loops omit it: its store may not be visible to them yet.
    peak = tl.sum(q.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * scale
    mass = tl.full([block_m], 1.0, tl.float32)
    total = tl.zeros([block_m, head_size], tl.float32) + new_value.to(tl.float32)[None, :]
    for part in tl.static_range(2):
        start = tl.load(key_starts + part * rows + row).to(tl.int64)
        count = tl.load(used_keys + part * rows + row) + (part - 1)
        for first in range(0, count, block_n):
            used = first + n < count
            places = (start + first + n)[:, None] * (2 * kv_heads * head_size) + head * head_size + d[None, :]
            keys = tl.load(kv + places, mask=used[:, None], other=0.0)
            values = tl.load(kv + places + kv_heads * head_size, mask=used[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(keys)) * scale
            scores = tl.where(used[None, :], scores, -float("inf"))
            new_peak = tl.maximum(peak, tl.max(scores, 1))
            p = tl.exp2(scores - new_peak[:, None])
            shrink = tl.exp2(peak - new_peak)
            mass = mass * shrink + tl.sum(p, 1)
            total = total * shrink[:, None] + tl.dot(p.to(values.dtype), values)
            peak = new_peak
    result = (total / mass[:, None]).to(new_value.dtype)
    tl.store(out + row * (kv_heads * group * head_size) + columns, result, mask=m[:, None] < group)


_kernel: Any = triton.jit(_attend) if triton is not None else None
