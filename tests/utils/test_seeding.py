"""Seeds and splits: they must never change, or runs and splits would."""

import pytest

from reinforce_lite.utils.seeding import derive_seed, hash_fraction


@pytest.mark.parametrize(
    ("seed", "purpose", "step", "expected"),
    [
        (0, "rollout", 1, 6929956040392660302),
        (0, "rollout", 2, 1482415719379592808),
        (1, "rollout", 1, 747655964413056966),
        (0, "evaluation", 0, 7707572308610677411),
    ],
)
def test_derive_seed_is_the_same_everywhere(seed: int, purpose: str, step: int, expected: int) -> None:
    assert derive_seed(seed, purpose, step) == expected


def test_derive_seed_has_63_bits() -> None:
    seeds = [derive_seed(0, "bits", step) for step in range(1000)]
    assert len(set(seeds)) == 1000
    assert 2**62 < max(seeds) < 2**63
    assert min(seeds) >= 0


def test_hash_fraction_is_the_same_everywhere() -> None:
    assert hash_fraction("train-0") == 0.2625178867758451
    assert hash_fraction("") == 0.8931675160897388


def test_hash_fraction_is_spread_over_0_to_1() -> None:
    fractions = [hash_fraction(str(i)) for i in range(1000)]
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert 450 < sum(fraction < 0.5 for fraction in fractions) < 550
