"""Partial attention, merged, against one softmax over all keys in float64, forward and backward."""

from typing import Any

import pytest
import torch

from reinforce_lite.models import attention
from reinforce_lite.models.attention import attend, attend_backward, merge

SCALE = 0.37
LENGTHS = (1, 3, 5)


@pytest.fixture(params=["fused", "written out", "written out in chunks"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernels, and the written-out ones with all queries, one query or a few at a time."""
    if request.param != "fused":
        monkeypatch.setattr(attention, "_use_fused_kernel", lambda q: False)
    if request.param == "written out in chunks":
        monkeypatch.setattr(attention, "MAX_SCORES", 60)


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


def reference_attention(q: Any, parts: list[tuple[Any, Any, Any]]) -> Any:
    """One softmax over the keys of all parts, each (keys, values, bias)."""
    scores = torch.cat([q @ k.transpose(-1, -2) * SCALE + bias for k, _, bias in parts], dim=-1)
    return scores.softmax(-1) @ torch.cat([v for _, v, _ in parts], dim=-2)


def causal_bias(n: int) -> Any:
    return torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)


def test_one_part_is_a_softmax_and_its_normalizer() -> None:
    q, k, v = normal(2, 3, 4, 8), normal(2, 3, 5, 8, seed=1), normal(2, 3, 5, 8, seed=2)
    out, lse = attend(q, k, v, SCALE)
    torch.testing.assert_close(out, reference_attention(q, [(k, v, 0.0)]))
    torch.testing.assert_close(lse, (q @ k.transpose(-1, -2) * SCALE).logsumexp(-1))


def test_masked_keys_do_not_count() -> None:
    """However large they are: the sequences have one, three and five valid keys."""
    q, k, v = normal(3, 2, 1, 8), normal(3, 2, 5, 8, seed=1), normal(3, 2, 5, 8, seed=2)
    for i, length in enumerate(LENGTHS):
        k[i, :, length:], v[i, :, length:] = 30.0, 1e6
    masked = torch.arange(5) >= torch.tensor(LENGTHS)[:, None]
    bias = torch.zeros(3, 5, dtype=torch.float64).masked_fill(masked, -torch.inf)[:, None, None]
    out, _ = attend(q, k, v, SCALE, bias)
    for i, length in enumerate(LENGTHS):
        expected = reference_attention(q[i], [(k[i, :, :length], v[i, :, :length], 0.0)])
        torch.testing.assert_close(out[i], expected, rtol=1e-6, atol=1e-6)


def test_three_parts_and_their_gradients_match_one_softmax() -> None:
    """A causal part, one that all queries attend to, and one that a query does not attend to at all."""
    q = normal(2, 3, 4, 8)
    parts = [(normal(2, 3, n, 8, seed=n), normal(2, 3, n, 8, seed=n + 9)) for n in (4, 6, 5)]
    unseen = torch.zeros(4, 5, dtype=torch.float64)
    unseen[2] = -torch.inf
    leaves = [t.clone().requires_grad_() for t in (q, *(t for part in parts for t in part))]
    biases = [causal_bias(4), 0.0, unseen]
    expected = reference_attention(
        leaves[0], [(leaves[1 + 2 * i], leaves[2 + 2 * i], biases[i]) for i in range(3)]
    )

    partial = [attend(q, *part, SCALE, causal=i == 0) for i, part in enumerate(parts)]
    partial[2][0][:, :, 2], partial[2][1][:, :, 2] = 0.0, -torch.inf
    merged = merge(partial)
    torch.testing.assert_close(merged[0], expected)

    grad = normal(2, 3, 4, 8, seed=99)
    expected.backward(grad)
    without_query = (merged[0], merged[1].clone())
    without_query[1][:, :, 2] = torch.inf
    gradients = [
        attend_backward(grad, q, *parts[0], merged, SCALE, causal=True),
        attend_backward(grad, q, *parts[1], merged, SCALE),
        attend_backward(grad, q, *parts[2], without_query, SCALE),
    ]
    torch.testing.assert_close(sum(d_q for d_q, _, _ in gradients), leaves[0].grad)
    for i, (_, d_keys, d_values) in enumerate(gradients):
        torch.testing.assert_close(d_keys, leaves[1 + 2 * i].grad)
        torch.testing.assert_close(d_values, leaves[2 + 2 * i].grad)


@pytest.mark.parametrize("implementation", ["fused"], indirect=True)
@pytest.mark.parametrize("queries", [8, 800])
def test_bfloat16_rounds_operands_only(queries: int) -> None:
    """Scores of about 30 would be off by 0.1 if they were rounded before the softmax."""
    q, k, v = (normal(1, 2, n, 16, seed=n).bfloat16() for n in (queries, 40, 41))
    v = v[:, :, :40]
    expected, expected_lse = attend(q.double(), k.double(), v.double(), 1.0)
    out, lse = attend(q, k, v, 1.0)
    assert expected_lse.max() > 30
    assert (lse - expected_lse).abs().max() < 0.01
    assert (out - expected).norm() / expected.norm() < 0.01
    assert lse.dtype == torch.float32
