"""Random streams that leave the process's own untouched."""

import torch

from reinforce_lite.utils.rng import isolated_rng


def test_isolated_rng_seeds_inside_and_restores_outside() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(7)
    seeded = torch.rand(3)
    torch.manual_seed(5)
    with isolated_rng(torch.device("cpu"), 7):
        assert torch.equal(torch.rand(3), seeded)
    assert torch.equal(torch.rand(3), expected)
