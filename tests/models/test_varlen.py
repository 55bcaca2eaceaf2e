"""Variable-length attention against one softmax for each segment in float64, forward and backward."""

# mypy: disable-error-code="arg-type, call-arg, misc"

from itertools import accumulate
from typing import Any

import pytest
import torch

from helpers.fake_cuda import FakeCuda
from reinforce_lite.models import varlen
from reinforce_lite.models.elementwise import merge
from reinforce_lite.models.varlen import Segments, attend, attend_backward

SCALE = 0.37
LENGTHS = (3, 0, 1, 6)
QUERIES, KEYS, HEADS, KV_HEADS, SIZE = 10, 14, 6, 2, 8


@pytest.fixture(params=["all scores", "a few scores", "a score"], autouse=True)
def max_scores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many scores are held at a time."""
    monkeypatch.setattr(
        varlen, "MAX_SCORES", {"all scores": 10**6, "a few scores": 90, "a score": 1}[request.param]
    )


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


def starts(*lengths: int) -> Any:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def segments(queries: Any, keys: Any, device: str = "cpu") -> Segments:
    return Segments(starts(*queries).to(device), starts(*keys).to(device), max(queries), max(keys))


def reference(q: Any, k: Any, v: Any, queries: Any, keys: Any, causal: bool) -> Any:
    """Segment by segment, with autograd; `keys` are a segment's indices."""
    outs, sums = [], []
    start = 0
    for n, used in zip(queries, keys, strict=True):
        part_k, part_v = (x[used].repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
        scores = torch.einsum("nhd,shd->nhs", q[start : start + n], part_k) * SCALE
        if causal:
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1)[:, None], -torch.inf)
        outs.append(torch.einsum("nhs,shd->nhd", scores.softmax(-1), part_v))
        sums.append(scores.logsumexp(-1))
        start += n
    return torch.cat(outs), torch.cat(sums)


def ranges(lengths: Any) -> list[range]:
    return [range(stop - n, stop) for n, stop in zip(lengths, accumulate(lengths), strict=True)]


@pytest.mark.parametrize(("keys", "causal"), [(LENGTHS, True), ((5, 2, 1, 4), False)])
def test_output_and_gradients_are_those_of_each_segment(keys: tuple[int, ...], causal: bool) -> None:
    """A segment without queries, whose keys get no gradient, and one of a single query."""
    leaves = [normal(QUERIES, HEADS, SIZE), normal(sum(keys), KV_HEADS, SIZE, seed=1)]
    leaves.append(normal(sum(keys), KV_HEADS, SIZE, seed=2))
    for leaf in leaves:
        leaf.requires_grad_()
    expected, expected_lse = reference(*leaves, LENGTHS, ranges(keys), causal)
    grad = normal(QUERIES, HEADS, SIZE, seed=3)
    expected.backward(grad)

    inputs = [leaf.detach() for leaf in leaves]
    out, lse = attend(*inputs, segments(LENGTHS, keys), SCALE, causal)
    torch.testing.assert_close((out, lse), (expected.detach(), expected_lse.detach()))
    gradients = attend_backward(grad, *inputs, (out, lse), segments(LENGTHS, keys), SCALE, causal)
    torch.testing.assert_close(list(gradients), [leaf.grad for leaf in leaves])


def test_parts_of_the_keys_are_merged_exactly() -> None:
    q, k, v, grad = (
        normal(10, HEADS, SIZE),
        *(normal(14, KV_HEADS, SIZE, seed=i) for i in (1, 2)),
        normal(10, HEADS, SIZE, seed=3),
    )
    leaves = [x.requires_grad_() for x in (q, k, v)]
    expected, expected_lse = reference(*leaves, [10], [range(14)], causal=False)
    expected.backward(grad)
    q, k, v = (x.detach() for x in leaves)
    parts = [(k[:5], v[:5], segments([10], [5])), (k[5:], v[5:], segments([10], [9]))]
    (a, lse_a), (b, lse_b) = (attend(q, *part, SCALE) for part in parts)
    merged = merge(a, lse_a, b, lse_b), torch.logaddexp(lse_a, lse_b)
    torch.testing.assert_close(merged, (expected.detach(), expected_lse.detach()))
    first, second = (attend_backward(grad, q, *keys, merged, s, SCALE) for *keys, s in parts)
    torch.testing.assert_close(first[0] + second[0], leaves[0].grad)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), leaves[1].grad)
    torch.testing.assert_close(torch.cat([first[2], second[2]]), leaves[2].grad)


USED, FIRST = [2, 5, 1], [9, 0, 6]
"""Of decoding: a number of used keys for each sequence, in slots of any order."""


def decoding_segments(device: str = "cpu") -> Segments:
    used, first = (torch.tensor(x, dtype=torch.int32).to(device) for x in (USED, [*FIRST, 0]))
    return Segments(starts(1, 1, 1).to(device), first, 1, 5, used)


def test_used_keys_start_anywhere() -> None:
    """What lies beyond them may be anything."""
    q, k, v = normal(3, HEADS, SIZE), *(normal(14, KV_HEADS, SIZE, seed=i) for i in (1, 2))
    keys = [range(first, first + n) for first, n in zip(FIRST, USED, strict=True)]
    unused = sorted(set(range(14)).difference(*keys))
    k[unused] = v[unused] = torch.nan
    found = attend(q, k, v, decoding_segments(), SCALE)
    torch.testing.assert_close(found, reference(q, k, v, [1, 1, 1], keys, causal=False))


@pytest.mark.parametrize(("size", "launches"), [(8, 1), (12, 0)])
def test_flash_attention_on_a_card(size: int, launches: int) -> None:
    """In half precision, unless flash attention refuses the head size; up to the rounding of the output."""
    q, k, v, grad = (normal(n, h, size, seed=h + n) for n, h in [(10, 6), (9, 2), (9, 2), (10, 6)])
    v, grad = v.flip(0), grad.flip(0)
    with FakeCuda() as card:
        inputs = [x.bfloat16().to("cuda") for x in (q, k, v)]
        on_card = segments(LENGTHS, (5, 2, 1, 1), "cuda")
        card.waits.clear()
        out, lse = attend(*inputs, on_card, SCALE)
        gradients = attend_backward(
            grad.bfloat16().to("cuda", non_blocking=True), *inputs, (out, lse), on_card, SCALE
        )
        assert not card.waits
        assert (
            card.launches["_flash_attention_forward"]
            == card.launches["_flash_attention_backward"]
            == launches
        )
        found = [x.cpu().double() for x in (out, lse, *gradients)]
    leaves = [x.bfloat16().double().requires_grad_() for x in (q, k, v)]
    expected = reference(*leaves, LENGTHS, ranges((5, 2, 1, 1)), causal=False)
    expected[0].backward(grad.bfloat16().double())
    exact = [*(x.detach() for x in expected), *(x.grad for x in leaves)]
    for a, b in zip(found, exact, strict=True):
        assert (a - b).norm() < 0.01 * b.norm()


def test_flash_attention_of_a_decoding_step() -> None:
    """The emulated card's, to which the program adds nothing, against the written-out way."""
    q, k, v = (normal(n, h, 8, seed=n + h).bfloat16() for n, h in [(3, 6), (14, 2), (13, 2)])
    v = torch.cat([v, v[:1]])
    expected = attend(q.float(), k.float(), v.float(), decoding_segments(), SCALE)
    with FakeCuda() as card:
        out, lse = attend(*(x.to("cuda") for x in (q, k, v)), decoding_segments("cuda"), SCALE)
        assert card.launches["_flash_attention_forward"] == 1
        found = out.cpu(), lse.cpu()
    torch.testing.assert_close(found[0].float(), expected[0], rtol=0.01, atol=0.01)
    torch.testing.assert_close(found[1], expected[1])
