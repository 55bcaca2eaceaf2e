"""Attention in parts against one softmax over all keys, in float64, forward and backward."""

from typing import Any

import pytest
import torch

from reinforce_lite.models import attention
from reinforce_lite.models.attention import attend, attend_backward, merge

SCALE = 0.37


@pytest.fixture(params=["fused", "written out", "written out in portions"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of computing it; portions of one query and of a few."""
    if request.param != "fused":
        monkeypatch.setattr(attention, "_fused", lambda q: False)
    if request.param == "written out in portions":
        monkeypatch.setattr(attention, "SCORES", 60)


def draw(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


def whole(q: Any, parts: list[tuple[Any, Any, Any]]) -> Any:
    """One softmax over the keys of all parts, each with what is added to its scores."""
    scores = torch.cat([q @ k.transpose(-1, -2) * SCALE + bias for k, _, bias in parts], dim=-1)
    return scores.softmax(-1) @ torch.cat([v for _, v, _ in parts], dim=-2)


def causal(n: int) -> Any:
    return torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)


def test_one_part_is_a_softmax_and_its_normaliser() -> None:
    q, k, v = draw(2, 3, 4, 8), draw(2, 3, 5, 8, seed=1), draw(2, 3, 5, 8, seed=2)
    out, lse = attend(q, k, v, SCALE)
    torch.testing.assert_close(out, whole(q, [(k, v, 0.0)]))
    torch.testing.assert_close(lse, (q @ k.transpose(-1, -2) * SCALE).logsumexp(-1))


def test_hidden_keys_do_not_count() -> None:
    """However large what stands in them: rows that see one, three and all five keys."""
    q, k, v = draw(3, 2, 1, 8), draw(3, 2, 5, 8, seed=1), draw(3, 2, 5, 8, seed=2)
    for row, seen in enumerate((1, 3, 5)):
        k[row, :, seen:], v[row, :, seen:] = 30.0, 1e6
    behind = torch.arange(5) >= torch.tensor([[1], [3], [5]])
    bias = torch.zeros(3, 5, dtype=torch.float64).masked_fill(behind, -torch.inf)[:, None, None]
    out, _ = attend(q, k, v, SCALE, bias)
    for row, seen in enumerate((1, 3, 5)):
        torch.testing.assert_close(
            out[row], whole(q[row], [(k[row, :, :seen], v[row, :, :seen], 0.0)]), rtol=1e-6, atol=1e-6
        )


def test_three_parts_and_their_gradients_are_those_of_one_softmax() -> None:
    """A causal one, one that all queries see, and one that a query does not see at all."""
    q = draw(2, 3, 4, 8)
    parts = [(draw(2, 3, n, 8, seed=n), draw(2, 3, n, 8, seed=n + 9)) for n in (4, 6, 5)]
    unseen = torch.zeros(4, 5, dtype=torch.float64)
    unseen[2] = -torch.inf
    leaves = [t.clone().requires_grad_() for t in (q, *(t for part in parts for t in part))]
    biases = [causal(4), 0.0, unseen]
    exact = whole(leaves[0], [(leaves[1 + 2 * i], leaves[2 + 2 * i], biases[i]) for i in range(3)])

    made = [attend(q, *part, SCALE, causal=i == 0) for i, part in enumerate(parts)]
    made[2][0][:, :, 2], made[2][1][:, :, 2] = 0.0, -torch.inf
    together = merge(made)
    torch.testing.assert_close(together[0], exact)

    grad = draw(2, 3, 4, 8, seed=99)
    exact.backward(grad)
    skipped = (together[0], together[1].clone())
    skipped[1][:, :, 2] = torch.inf  # counts for nothing
    found = [
        attend_backward(grad, q, *parts[0], together, SCALE, causal=True),
        attend_backward(grad, q, *parts[1], together, SCALE),
        attend_backward(grad, q, *parts[2], skipped, SCALE),
    ]
    torch.testing.assert_close(sum(d_q for d_q, _, _ in found), leaves[0].grad)
    for i, (_, d_keys, d_values) in enumerate(found):
        torch.testing.assert_close(d_keys, leaves[1 + 2 * i].grad)
        torch.testing.assert_close(d_values, leaves[2 + 2 * i].grad)


@pytest.mark.parametrize("way", ["fused"], indirect=True)
@pytest.mark.parametrize("queries", [8, 800])
def test_in_bfloat16_only_operands_are_rounded(queries: int) -> None:
    """Scores of about 30 would be off by 0.1 if they were rounded before the softmax."""
    q, k, v = (draw(1, 2, n, 16, seed=n).bfloat16() for n in (queries, 40, 41))
    v = v[:, :, :40]
    exact, lse = attend(q.double(), k.double(), v.double(), 1.0)
    out, found = attend(q, k, v, 1.0)
    assert lse.max() > 30
    assert (found - lse).abs().max() < 0.01
    assert (out - exact).norm() / exact.norm() < 0.01
    assert found.dtype == torch.float32
