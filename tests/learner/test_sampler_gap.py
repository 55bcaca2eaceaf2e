"""The distance of the engine from the policy, by hand."""

from math import exp

import pytest

from reinforce_lite.learner.sampler_gap import NO_GAP, SamplerGap


def test_gap_by_hand() -> None:
    gap = SamplerGap.measure([[0.1, -0.3], [0.2]])
    assert gap.mean == pytest.approx(0.2)
    assert gap.largest == pytest.approx(0.3)
    a, b = exp(-0.2), exp(0.2)
    assert gap.effective_sample_size == pytest.approx((a + b) ** 2 / (2 * (a * a + b * b)))


def test_parts_add_up_to_the_whole() -> None:
    parts = SamplerGap.measure([[0.1, -0.3]]) + SamplerGap.measure([[0.2], [0.0]]) + NO_GAP
    whole = SamplerGap.measure([[0.1, -0.3], [0.2], [0.0]])
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.largest == whole.largest
    assert parts.effective_sample_size == pytest.approx(whole.effective_sample_size)


def test_no_tokens_have_no_gap() -> None:
    assert (NO_GAP.mean, NO_GAP.largest, NO_GAP.effective_sample_size) == (0.0, 0.0, 1.0)


def test_a_huge_gap_stays_finite() -> None:
    assert SamplerGap.measure([[1e4], [0.0]]).effective_sample_size == pytest.approx(0.5)
