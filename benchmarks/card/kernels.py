"""Attention and elementwise kernels."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from card.shared import CUDA, DEVICE, PROMPT, SAMPLES, TINY, report, seconds, synchronize
from torch import Tensor

from reinforce_lite.models import elementwise, logprobs
from reinforce_lite.models.elementwise import merge
from reinforce_lite.models.llama_families import SILU
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, PrefixTree
from reinforce_lite.models.varlen import Segments, attend, attend_backward

HEADS = SimpleNamespace(query_heads=16, kv_heads=2, head_size=128, key_start=16 * 128, scale=128**-0.5)
"""The attention of a Qwen2.5-3B, as a `Llama` describes it."""


def kernels() -> None:
    """Attention and elementwise kernels: exactness and milliseconds."""
    _check_merged_parts()
    _time_elementwise()
    _time_tree_attention()
    if CUDA:
        _check_flash_kernels()


def _offsets(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def _error(value: Tensor, exact: Tensor) -> float:
    return float((value.detach().double() - exact.detach()).norm() / exact.detach().norm())


def _random_qkv(queries: int, keys: int) -> list[Tensor]:
    """Queries, keys, values and a gradient of the output: (queries, Q, D) or (keys, K, D)."""
    dtype = torch.bfloat16 if CUDA else torch.float32
    torch.manual_seed(0)
    shapes = [(queries, HEADS.query_heads), (keys, HEADS.kv_heads), (keys, HEADS.kv_heads)]
    shapes += shapes[:1]
    return [torch.randn(*s, HEADS.head_size, device=DEVICE, dtype=dtype) for s in shapes]


def _check_merged_parts() -> None:
    """Attention to 96 keys in two parts, and its gradient, against float64."""

    n, m, cut = 64, 96, 32
    q, k, v, grad = _random_qkv(n, m)
    scale = HEADS.scale
    parts = [
        (k[keys], v[keys], Segments(_offsets(0, n), _offsets(0, len(k[keys])), n, m))
        for keys in (slice(0, cut), slice(cut, m))
    ]
    (a, lse_a), (b, lse_b) = (attend(q, *part, scale) for part in parts)
    out, lse = merge(a, lse_a, b, lse_b), torch.logaddexp(lse_a, lse_b)
    first, second = (
        attend_backward(grad, q, keys, values, (out, lse), segments, scale)
        for keys, values, segments in parts
    )
    exact_q, exact_k, exact_v = (x.double().detach().requires_grad_() for x in (q, k, v))
    repeats = HEADS.query_heads // HEADS.kv_heads
    scores = torch.einsum("nhd,mhd->hnm", exact_q, exact_k.repeat_interleave(repeats, 1)) * scale
    exact = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), exact_v.repeat_interleave(repeats, 1))
    exact.backward(grad.double())
    report(
        merged=_error(out, exact),
        d_queries=_error(first[0] + second[0], exact_q.grad),
        d_keys=_error(torch.cat([first[1], second[1]]), exact_k.grad),
        d_values=_error(torch.cat([first[2], second[2]]), exact_v.grad),
    )


def _check_flash_kernels() -> None:
    """A query without keys, and decoding with a number of used keys for each sequence."""
    flash = torch.ops.aten._flash_attention_forward
    q, k, v, _ = _random_qkv(64, 96)
    empty = flash(
        q[:2], k[:8], v[:8], _offsets(0, 1, 2), _offsets(0, 0, 8), 1, 8, 0.0, False, False, scale=HEADS.scale
    )
    report(no_keys_out=float(empty[0][0].abs().max()), no_keys_lse=float(empty[1][0, 0]))  # +inf or -inf?
    used = _offsets(1, 5, 64, 33, 2, 17, 40, 9)
    sequences, width = len(used), 64
    q, k, v, _ = _random_qkv(sequences, sequences * width)
    starts = _offsets(*range(0, sequences * width + 1, width))
    out, lse, *_ = flash(
        *(q, k, v, _offsets(*range(sequences + 1)), starts, 1, width, 0.0, False, False),
        scale=HEADS.scale,
        seqused_k=used,
    )
    repeats = HEADS.query_heads // HEADS.kv_heads
    keys, values = (
        x.double().view(sequences, width, HEADS.kv_heads, -1).repeat_interleave(repeats, 2) for x in (k, v)
    )
    scores = torch.einsum("rhd,rwhd->rhw", q.double(), keys) * HEADS.scale
    scores = scores.masked_fill(torch.arange(width, device=DEVICE) >= used[:, None, None], -torch.inf)
    lse_by_sequence = lse.t() if lse.shape[0] == HEADS.query_heads else lse
    report(
        decode_out=_error(out, torch.einsum("rhw,rwhd->rhd", scores.softmax(-1), values)),
        decode_lse_shape=list(lse.shape),
        decode_lse=_error(lse_by_sequence, scores.logsumexp(-1))
        if lse.numel() == scores[..., 0].numel()
        else None,
    )


def _time_elementwise() -> None:
    """Each function for a micro-batch of a 3B model: time, and what it reads and writes."""

    n, heads, d = 64 if TINY else 8000, HEADS.query_heads, HEADS.head_size
    hidden, inner, vocabulary = (64, 96, 256) if TINY else (2048, 11_008, 151_936)
    chunk = 32 if TINY else 883
    dtype = torch.bfloat16 if CUDA else torch.float32

    def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=dtype)

    x, gain, gate_up, d_inner = random(n, hidden), random(hidden), random(n, 2 * inner), random(n, inner)
    qkv, angles = random(n, (heads + 4) * d), random(n, d)
    out, lse = random(n, heads, d), random(heads, n, dtype=torch.float32).t()
    logits, tokens = random(chunk, vocabulary), torch.randint(vocabulary, (chunk,), device=DEVICE)
    inverse, normalizer = torch.ones(n, 1, device=DEVICE), torch.full((chunk,), 12.0, device=DEVICE)
    size = x.element_size()
    jobs: dict[str, tuple[Callable[[], Any], int]] = {
        "rms_norm": (lambda: elementwise.rms_norm(x, gain, 1e-6), 2 * x.numel()),
        "swiglu": (lambda: elementwise.swiglu(gate_up, SILU), 3 * n * inner),
        "swiglu_backward": (lambda: elementwise.swiglu_backward(d_inner, gate_up, SILU), 6 * n * inner),
        "rotate": (lambda: elementwise.rotate(qkv, angles, angles, heads + 2, d), 2 * qkv.numel()),
        "merge": (lambda: elementwise.merge(out, lse, out, lse), 3 * out.numel()),
    }
    if CUDA:
        compiled = elementwise.compile_for_card
        forward, gradient = logprobs._logprobs_and_normalizer, logprobs._logits_gradient
        jobs |= {
            "rms_norm_backward": (
                lambda: elementwise.rms_norm_backward(x, x, inverse, gain, needs_gain=True),
                3 * x.numel(),
            ),
            "logprobs": (lambda: compiled(forward)(logits, tokens, 0.7), logits.numel()),
            "logprobs_backward": (
                lambda: compiled(gradient)(logits, tokens, normalizer, normalizer, 0.7),
                2 * logits.numel(),
            ),
        }
    for name, (job, elements) in jobs.items():
        start = time.perf_counter()
        job()
        synchronize()
        first_seconds = time.perf_counter() - start
        spent = seconds(job, 10)
        report(
            function=name,
            first_seconds=first_seconds,
            milliseconds=1e3 * spent,
            gb_s=elements * size / spent / 1e9,
        )


def _time_tree_attention() -> None:
    """One layer's attention over a step's tree, forward and backward."""

    width = (HEADS.query_heads + 2 * HEADS.kv_heads) * HEADS.head_size
    dtype = torch.bfloat16 if CUDA else torch.float32
    for length, prefix in [(16, 8)] if TINY else [(250, 0), (250, 512), (512, 0), (1024, 0)]:
        branches = [Branch(range(PROMPT), [range(length)] * SAMPLES) for _ in range(3)]
        tree = PrefixTree(branches, prefix, DEVICE)
        qkv = torch.randn(len(tree.ids), width, device=DEVICE, dtype=dtype).requires_grad_()
        shared = torch.randn(prefix, width - HEADS.key_start, device=DEVICE, dtype=dtype).requires_grad_()
        grad = torch.randn(len(tree.ids), HEADS.key_start, device=DEVICE, dtype=dtype)
        attention: Any = PrefixAttention(HEADS, tree, [shared] if prefix else ())  # type: ignore[arg-type]
        forward = seconds(lambda a=attention, x=qkv: a(0, x))
        both = seconds(lambda a=attention, x=qkv, g=grad: a(0, x).backward(g))
        report(
            completion_length=length,
            prefix=prefix,
            tokens=len(tree.ids),
            forward_ms=1e3 * forward,
            backward_ms=1e3 * (both - forward),
        )
