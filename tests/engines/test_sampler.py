"""Sampling against exact distributions."""

from collections import Counter

import pytest
import torch

from reinforce_lite.engines import sampler
from reinforce_lite.engines.sampler import (
    CANDIDATES,
    sample_tokens,
    sample_without_waiting,
    top_values,
)
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


EOS = torch.tensor([2, 2499])


def both_samplers(
    logits: torch.Tensor, sampling: Sampling, uniforms: torch.Tensor, forbid_eos: torch.Tensor | None
) -> tuple[list[int], list[int], list[bool]]:
    """The tokens of both, and the rows that the second leaves to the first; log-probabilities must be equal."""
    expected, exact = sample_tokens(logits.float(), sampling, uniforms, EOS.tolist(), forbid_eos)
    tokens, logprobs, wide = sample_without_waiting(logits.clone(), sampling, uniforms, EOS, forbid_eos)
    same = (tokens == expected) & ~wide
    assert logprobs[same].tolist() == pytest.approx(exact[same].tolist(), abs=1e-5)
    return tokens.tolist(), expected.tolist(), wide.tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.7, 0.9), (0.3, 0.5), (1.0, 1.0), (0.8, 1.0), (0.0, 1.0)]
)
@pytest.mark.parametrize("ban", [False, True])
@pytest.mark.parametrize("at", [1.0, 0.6])
def test_sampling_without_waiting_draws_the_same_tokens(
    temperature: float, top_p: float, ban: bool, at: float
) -> None:
    """Some rows with EOS far ahead, which only half of them may draw."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, VOCABULARY, generator=generator) * 4
    logits[::4, 2] = 30.0
    forbid_eos = torch.arange(400) % 8 < 4 if ban else None
    uniforms = torch.rand(400, generator=generator, dtype=torch.float64)
    tokens, expected, wide = both_samplers(
        logits, Sampling(1, 1, 1, temperature, top_p, recorded_temperature=at), uniforms, forbid_eos
    )
    assert not any(wide)
    assert tokens == expected
    if ban:
        assert 2 not in tokens[::8]
        assert 2 in tokens[4::8]


def test_rows_whose_nucleus_is_wider_than_the_candidates_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 tokens of equal mass: 91 of them reach 0.9 after rounding, 90 do not."""
    monkeypatch.setattr(sampler, "CANDIDATES_ON_CARD", 90)
    logits = torch.full((2, VOCABULARY), -50.0)
    logits[0, :100], logits[1, :99] = 0.0, 0.0
    _, _, wide = both_samplers(logits, Sampling(1, 1, 0, 1.0, 0.905), torch.tensor([0.1, 0.2]).double(), None)
    assert wide == [True, False]


def test_the_ends_of_a_distribution_without_waiting() -> None:
    """The smallest and the largest uniform draw the first and the last token with mass."""
    logits = torch.full((2, VOCABULARY), -torch.inf)
    logits[:, 700], logits[:, 1300] = 0.0, 0.0
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert both_samplers(logits, Sampling(1, 1), uniforms, None)[0] == [700, 1300]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.0, 1.0), (0.0, 1.0)])
def test_nan_draws_a_token_of_the_vocabulary(temperature: float, top_p: float) -> None:
    """On a card an index beyond it would end the process."""
    logits, uniforms = torch.full((3, VOCABULARY), torch.nan), torch.full((3,), 0.5, dtype=torch.float64)
    tokens, _, _ = sample_without_waiting(logits, Sampling(1, 1, 0, temperature, top_p), uniforms, EOS)
    assert all(0 <= token < VOCABULARY for token in tokens.tolist())
