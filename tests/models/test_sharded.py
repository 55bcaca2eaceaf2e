"""FSDP2's sharded copy in two processes, against plain transformers in one.

Each process has completions of its own; the gradient of both is expected.
"""

import os
from typing import Any

import pytest
import torch

from helpers import processes
from helpers.model_configs import make_family
from helpers.plain import BRANCHES, completion_tokens, reference_logprobs
from reinforce_lite.errors import UsageError
from reinforce_lite.models import distributed
from reinforce_lite.models.logprobs import token_logprobs
from reinforce_lite.models.sharded import ShardedModel

N = 2
Parts = dict[str, tuple[slice, list[float]]]


def pass_twice(family: str, dtype: torch.dtype, checkpointing: bool) -> tuple[list[float], Parts]:
    """In one of the processes: log-probabilities, and its part of the gradient, after weights were changed.

    A first pass, of the weights before, has no backward pass, as in the check before a run.
    """
    distributed.join("cpu")
    model = make_family(family).to(dtype)
    sharded = ShardedModel(model, checkpointing)
    branches = [BRANCHES[int(os.environ["RANK"])]]
    for factor in (1.5, 1.0):
        for name, weight in model.named_parameters():
            own = weight.detach().view(-1)[distributed.own_range(weight.shape, by_rows=True)]
            sharded.parts[name].copy_(factor * own.float())
        sharded.forward_pass.release()
        states = sharded.forward_pass.states(branches, None)
        logprobs = token_logprobs(sharded.model, states, completion_tokens(branches), 0.7)
    torch.autograd.backward(logprobs.sum())
    gradients: Parts = {}
    for name, gradient in sharded.gradients().items():
        assert gradient is not None
        assert gradient.dtype == torch.float32
        gradients[name] = (
            distributed.own_range(model.get_parameter(name).shape, by_rows=True),
            gradient.tolist(),
        )
    sharded.drop_gradients()
    assert all(p.grad is None for p in sharded.model.parameters())
    return logprobs.tolist(), gradients


def gradient_error(model: Any, parts: list[Parts]) -> float:
    """The norm of the difference to the model's gradient, relative to that."""
    differences, expected = [], []
    for name, param in model.named_parameters():
        got = torch.zeros(param.numel())
        for part, gradient in (found[name] for found in parts):
            got[part] += torch.tensor(gradient)
        differences.append(got - param.grad.flatten())
        expected.append(param.grad.flatten())
    return float(torch.cat(differences).norm() / torch.cat(expected).norm())


@pytest.mark.parametrize(
    ("family", "checkpointing"), [("qwen2", False), ("qwen2", True), ("phi3", False), ("gemma3", True)]
)
def test_gradient_is_the_sum_of_plain_transformers(family: str, checkpointing: bool) -> None:
    """Tied and untied heads, fused projections, a soft cap, norms with an offset."""
    found = processes.run(N, pass_twice, family, torch.float32, checkpointing)
    model = make_family(family)
    for rank, (logprobs, _) in enumerate(found):
        expected = reference_logprobs(model, [BRANCHES[rank]], 0.7)
        assert logprobs == pytest.approx(expected.tolist(), abs=2e-5)
        torch.autograd.backward(expected.sum())
    assert gradient_error(model, [parts for _, parts in found]) < 1e-5


def build(family: str) -> None:
    """A sharded copy of a model whose layers are plain modules."""
    distributed.join("cpu")
    model = make_family(family)
    for layer in model.base_model.layers:
        layer.__class__ = torch.nn.Module
    ShardedModel(model)


def test_model_without_known_layers_is_refused() -> None:
    """It would be gathered as a whole."""
    for error in processes.run(N, build, "qwen2"):
        assert isinstance(error, UsageError)
        assert "layers of qwen2" in error.cause


def test_in_bfloat16_only_the_passes_are_rounded() -> None:
    """The parts and the summed gradient stay in float32."""
    found = processes.run(N, pass_twice, "qwen2", torch.bfloat16, False)
    model = make_family("qwen2").to(torch.bfloat16).float()
    torch.autograd.backward(reference_logprobs(model, BRANCHES[:N], 0.7).sum())
    assert 1e-4 < gradient_error(model, [parts for _, parts in found]) < 0.05
