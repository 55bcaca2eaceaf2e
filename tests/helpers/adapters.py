"""Policies with adapters that change what they compute."""

import torch

from reinforce_lite.config import AdapterConfig
from reinforce_lite.models.policy import Policy


def adapted(policy: Policy, rank: int = 3, targets: tuple[str, ...] = (), alpha: float = 6.0) -> Policy:
    """The policy with an adapter whose B is not zero."""
    policy.add_adapter(AdapterConfig(rank=rank, alpha=alpha, targets=targets), seed=0)
    assert policy.adapter is not None
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in policy.adapter.layers.values():
            layer.b.normal_(std=0.1)
    return policy
