"""The Triton kernel of a decoding step, interpreted on a CPU, against attention in float64."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

ROWS, WIDTH, SLOT_WIDTH, SLOTS = 3, 70, 130, 2
OWN, SLOT_OF_ROW, IN_SLOT = [1, 70, 65], [1, 0, 0], [64, 130, 3]
"""Tokens of each row, its slot, and the tokens of its prompt: full blocks of 64 keys, and parts of one."""


@pytest.mark.skipif(not os.environ.get("TRITON_INTERPRET"), reason="runs in a process of its own")
@pytest.mark.parametrize(
    ("kv_heads", "group", "head_size", "dtype", "bound"),
    [(2, 8, 32, torch.float32, 1e-6), (2, 3, 64, torch.float16, 2e-3), (1, 16, 128, torch.float16, 2e-3)],
)
def test_kernel_equals_attention_written_out(
    kv_heads: int, group: int, head_size: int, dtype: torch.dtype, bound: float
) -> None:
    """With key biases that make scores of hundreds; the new keys and values are written."""
    from reinforce_lite.engines.decode_kernel import attend_to_cache

    _let_numpy_count()
    torch.manual_seed(0)
    kv = torch.randn(ROWS * WIDTH + SLOTS * SLOT_WIDTH, 2, kv_heads, head_size)
    kv[:, 0] += 20 * torch.randn(kv_heads, head_size)
    kv = kv.to(dtype)
    queries = kv_heads * group
    qkv = torch.randn(ROWS, (queries + 2 * kv_heads) * head_size).to(dtype)
    starts = [row * WIDTH for row in range(ROWS)]
    prompts = [ROWS * WIDTH + slot * SLOT_WIDTH for slot in SLOT_OF_ROW]
    write_at = torch.tensor([start + n - 1 for start, n in zip(starts, OWN, strict=True)])
    key_starts = torch.tensor([*starts, *prompts, 0], dtype=torch.int32)
    used_keys = torch.tensor([*OWN, *IN_SLOT], dtype=torch.int32)
    out = attend_to_cache(qkv, kv, write_at, key_starts, used_keys, head_size**-0.5)
    assert torch.equal(kv[write_at].flatten(1), qkv[:, queries * head_size :])
    for row in range(ROWS):
        own, prompt = (kv[s:][:n] for s, n in ((starts[row], OWN[row]), (prompts[row], IN_SLOT[row])))
        exact = _attend(qkv[row, : queries * head_size].view(queries, -1), torch.cat([own, prompt]), group)
        assert (out[row].double() - exact).norm() < bound * exact.norm()


def _attend(q: Tensor, kv: Tensor, group: int) -> Tensor:
    """(Q x D) of one token's (Q, D) queries over (n, 2, K, D) keys and values, in float64."""
    keys, values = kv.double().repeat_interleave(group, 2).unbind(1)
    p = (torch.einsum("qd,nqd->qn", q.double(), keys) * q.shape[1] ** -0.5).softmax(-1)
    return torch.einsum("qn,nqd->qd", p, values).flatten()


def _let_numpy_count() -> None:
    """Triton's interpreter converts arrays of one element to int, which numpy 2.4 refuses."""
    from triton.runtime import interpreter

    class Meta(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, int)

    class Int(metaclass=Meta):
        def __new__(cls, value: Any) -> int:  # type: ignore[misc]
            return int(value.item() if hasattr(value, "item") else value)

    interpreter.int = Int


def test_kernel_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "written_out"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "\n..." in f"\n{done.stdout}"  # three, and none was skipped
