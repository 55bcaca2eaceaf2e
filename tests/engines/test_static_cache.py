"""The static cache against attention written out in float64."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.fake_cuda import FakeCuda
from reinforce_lite.engines import decode_kernel
from reinforce_lite.engines.static_cache import BatchSize, StaticCache

ROWS, KV_HEADS, QUERY_HEADS, HEAD_SIZE, SCALE = 4, 2, 6, 16, 0.25
PREFIX = 2
PROMPTS = {2: 3, 0: 5}
"""Tokens after the prefix, by slot."""
SLOTS = [2, 0, 2]
"""Of the rows; the last row is idle."""
STEPS = 3


def attend_exactly(q: Tensor, kv: Tensor) -> Tensor:
    """(Q, D) queries of one token to (n, 2, K, D) keys and values, in float64."""
    keys, values = kv.double().repeat_interleave(QUERY_HEADS // KV_HEADS, 2).unbind(1)  # (n, Q, D)
    p = (torch.einsum("qd,nqd->qn", q.double(), keys) * SCALE).softmax(-1)
    return torch.einsum("qn,nqd->qd", p, values)


@pytest.mark.parametrize(
    ("device", "dtype", "key_bias", "bound"),
    [("cpu", "float32", 0.0, 1e-6), ("cuda", "float32", 0.0, 1e-6), ("cuda", "bfloat16", 100.0, 0.01)],
)
def test_rows_attend_to_their_tokens_and_to_prefix_and_prompt(
    device: str, dtype: str, key_bias: float, bound: float
) -> None:
    """In bfloat16 as flash attention computes it on a card, with biases that make scores of thousands."""
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(KV_HEADS, HEAD_SIZE, generator=generator) * key_bias

    def random_kv(n: int) -> Tensor:
        kv = torch.randn(n, 2, KV_HEADS, HEAD_SIZE, generator=generator)
        kv[:, 0] += bias
        return kv.to(getattr(torch, dtype))

    queries = torch.randn(STEPS, ROWS, QUERY_HEADS, HEAD_SIZE, generator=generator).to(getattr(torch, dtype))
    prefix, prompts = random_kv(PREFIX), {slot: random_kv(n) for slot, n in PROMPTS.items()}
    own = [random_kv(ROWS) for _ in range(STEPS)]
    with FakeCuda():
        found = run_cache(device, queries, prefix, prompts, own)
    for step in range(STEPS):
        for row, slot in enumerate(SLOTS):
            tokens = torch.cat([prefix, prompts[slot], *(kv[row][None] for kv in own[: step + 1])])
            exact = attend_exactly(queries[step, row], tokens)
            error = (found[step][row].double().view_as(exact) - exact).norm() / exact.norm()
            assert error < bound


def test_running_out_of_memory_is_no_lack_of_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton has no type of error for it."""

    def no_memory(*args: Any) -> None:
        raise RuntimeError("Triton Error [CUDA]: out of memory")

    monkeypatch.setattr(decode_kernel, "supports", lambda *args: True)
    monkeypatch.setattr(decode_kernel, "attend_to_cache", no_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        StaticCache(llama_on("cpu"), BatchSize(ROWS, STEPS, 3, PREFIX + 5), torch.float32)


def llama_on(device: str) -> Any:
    """What a cache asks of a model."""
    return SimpleNamespace(
        kv_heads=KV_HEADS,
        query_heads=QUERY_HEADS,
        head_size=HEAD_SIZE,
        key_start=QUERY_HEADS * HEAD_SIZE,
        scale=SCALE,
        layers=[None],
        device=torch.device(device),
    )


def run_cache(
    device: str, queries: Tensor, prefix: Tensor, prompts: dict[int, Tensor], own: list[Tensor]
) -> list[Tensor]:
    """The (R, Q x D) attention of each step, on the CPU."""
    cache = StaticCache(llama_on(device), BatchSize(ROWS, STEPS, 3, PREFIX + 5), queries.dtype)
    cache.write_prefix([prefix.to(device).flatten(1)])
    for slot, kv in prompts.items():
        start = cache.slot_start(slot) + PREFIX
        cache.write(torch.arange(start, start + len(kv), device=device), 0, kv.to(device).flatten(1))
    lengths = [PREFIX + PROMPTS[slot] for slot in SLOTS]
    starts = [cache.slot_start(slot) for slot in SLOTS]
    cache.assign(*(torch.tensor(x, device=device) for x in (list(range(len(SLOTS))), starts, lengths)))
    idle = torch.tensor([False, False, False, True], device=device)
    outputs = []
    for step, (q, kv) in enumerate(zip(queries, own, strict=True)):
        places = cache.next_places(torch.full((ROWS,), step + 1, device=device), idle)
        assert places.tolist() == [step, step, step, STEPS - 1]
        outputs.append(cache.attend(0, torch.cat([q.flatten(1), kv.flatten(1)], dim=1).to(device)).cpu())
    return outputs
