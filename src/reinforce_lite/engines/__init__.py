"""Weights and prompts to completions, by any of several engines behind one protocol."""

from reinforce_lite.engines.base import Engine
from reinforce_lite.models import Policy


def make(name: str, policy: Policy) -> Engine:
    """The engine of this name over the policy's own weights."""
    from reinforce_lite.engines.hf import HFEngine

    return {"hf": HFEngine}[name](policy)
