"""Sampling against exact distributions."""

from collections import Counter

import pytest
import torch

from reinforce_lite.engines.sampler import CANDIDATES, sample_tokens, top_values
from reinforce_lite.types import Sampling

VOCABULARY = 2501
"""More than the blocks of `top_values`, and a remainder."""


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (2.5, 0.9), (1.0, 1.0)])
def test_sample_tokens_follows_the_exact_nucleus(temperature: float, top_p: float) -> None:
    """Total variation between 90,000 draws and the exact nucleus; 2% more of one token would show.

    At temperature 2.5 the nucleus is wider than CANDIDATES.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, VOCABULARY, generator=generator) * 2.5
    p = torch.softmax(logits[0].double() / temperature, 0)
    ordered, order = p.sort(descending=True)
    nucleus = order[(ordered.cumsum(0) - ordered) < top_p]
    exact = torch.zeros(VOCABULARY, dtype=torch.float64)
    exact[nucleus] = p[nucleus] / p[nucleus].sum()
    assert (len(nucleus) > CANDIDATES) == (temperature != 0.7)

    batch = 3000

    def distance(distribution: torch.Tensor, n: int = 90_000) -> float:
        """Of the 5 likeliest tokens and all others together, so that chance stays small."""
        counts = torch.zeros(VOCABULARY, dtype=torch.float64)
        forbid_eos = torch.zeros(batch, dtype=torch.bool)
        sampling = Sampling(1, 1, 0, temperature, top_p)
        for _ in range(n // batch):
            uniforms = torch.rand(batch, generator=generator, dtype=torch.float64)
            tokens, _logprobs = sample_tokens(logits.expand(batch, -1), sampling, uniforms, [2], forbid_eos)
            counts += torch.bincount(tokens, minlength=VOCABULARY)
        assert counts[exact == 0].sum() == 0
        top, rest = order[:5], order[5:]
        gap = (counts / n - distribution).abs()[top].sum() + abs(
            float(counts[rest].sum() / n - distribution[rest].sum())
        )
        return float(gap) / 2

    assert distance(exact) < 0.006
    distorted = exact * 0.98
    distorted[order[0]] += 0.02
    assert distance(distorted) > 0.01


def test_top_values_equal_topk() -> None:
    x = torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(0))
    x[0, -3:] = torch.tensor([9.0, 8.0, 7.0])  # in the remainder after the blocks
    x[1, 5:2496:78] += 5  # many of them in one block
    values, indices = top_values(x, CANDIDATES)
    assert torch.equal(values, x.topk(CANDIDATES, dim=1).values)
    assert torch.equal(x.gather(1, indices), values)
    assert indices[0, :3].tolist() == [2498, 2499, 2500]
    assert top_values(x[:, :10], CANDIDATES)[0].shape == (7, 10)


def test_forbidden_eos_far_ahead_leaves_the_others_exact() -> None:
    """At temperature 0.1, a token 12 nats below EOS would otherwise underflow in float32."""
    n = 4000
    logits = torch.full((n, 300), -30.0)
    logits[:, 2], logits[:, 7], logits[:, 9] = 12.0, 0.0, 0.0
    uniforms = torch.arange(n, dtype=torch.float64) / n
    forbid_eos = torch.ones(n, dtype=torch.bool)
    tokens, logprobs = sample_tokens(logits, Sampling(1, 1, 1, 0.1, 0.9), uniforms, [2], forbid_eos)
    assert Counter(tokens.tolist()) == {7: n // 2, 9: n // 2}
    assert logprobs.tolist() == pytest.approx([-12.0] * n, abs=1e-4)


def test_rounding_never_draws_a_token_without_mass() -> None:
    """The last uniform below 1, with a tail that top-p has cut off."""
    logits = torch.full((1, 300), -30.0)
    logits[0, 5] = 0.0
    uniforms = torch.tensor([1 - 2**-53], dtype=torch.float64)
    tokens, _ = sample_tokens(
        logits, Sampling(1, 1, 0, 1.0, 0.9), uniforms, [2], torch.zeros(1, dtype=torch.bool)
    )
    assert tokens.tolist() == [5]
