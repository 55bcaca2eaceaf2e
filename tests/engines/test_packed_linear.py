"""Products with packed weights against F.linear."""

import pytest
import torch
import torch.nn.functional as F

from reinforce_lite.engines.packed_linear import can_pack, make_linear
from reinforce_lite.models.policy import Policy


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_packed_product_is_that_of_linear(policy: Policy, rows: int) -> None:
    assert policy.llama is not None
    weight = policy.llama.layers[0].gate_up.weight
    if not can_pack(weight):
        pytest.skip("torch has no packed products here")
    x = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(0))
    bias = torch.arange(float(len(weight)))
    linear = make_linear(policy.llama, 64)
    assert torch.allclose(linear(x, weight, None), F.linear(x, weight), atol=1e-5)
    assert torch.allclose(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-5)


def test_integer_weights_are_not_packed() -> None:
    assert not can_pack(torch.zeros(4, 4, dtype=torch.int64))
