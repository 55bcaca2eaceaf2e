"""The backward pass in chunks against plain transformers, one unpadded sequence at a time."""

import pytest
import torch

from helpers.plain import (
    BRANCHES,
    COMPLETIONS,
    FORWARD_PASSES,
    completion_tokens,
    gradient_difference,
    reference_logprobs,
)
from helpers.tiny import END, make_model
from reinforce_lite.learner import loss as loss_module
from reinforce_lite.learner.loss import backward_in_chunks, importance_weights
from reinforce_lite.models.forward import TreeForward
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_tree import Branch


@pytest.mark.parametrize("name", FORWARD_PASSES)
@pytest.mark.parametrize("chunk", [1, 5, 10_000], ids=["one token", "five", "all"])
def test_gradients_match_transformers_for_any_chunk_size(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *_: chunk)
    model, reference = make_model(), make_model()
    tokens = completion_tokens(BRANCHES)
    weights = torch.linspace(-1, 2, len(tokens), dtype=torch.float64)
    states = FORWARD_PASSES[name](model).states(BRANCHES, None)
    loss, plain = backward_in_chunks(model, states, tokens, weights, 0.7)
    expected = -(weights * reference_logprobs(reference, BRANCHES, 0.7)).sum()
    torch.autograd.backward(expected)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert gradient_difference(model, reference) < 1e-5
    assert plain.tolist() == pytest.approx(reference_logprobs(make_model(), BRANCHES, 1.0).tolist(), abs=1e-5)


def test_the_end_token_learns_although_it_is_the_padding(policy: Policy) -> None:
    """Chat templates put end tokens into the prompt, and torch gives a padding row no gradient."""
    branches = [Branch((1, 40, END, 41), COMPLETIONS)]
    tokens = completion_tokens(branches)
    assert policy.llama is not None
    states = TreeForward(policy.llama).states(branches, None)
    backward_in_chunks(policy.model, states, tokens, -torch.ones(len(tokens)), 1.0)
    reference = make_model(pad_token_id=None)
    reference.load_state_dict(policy.model.state_dict())
    torch.autograd.backward(reference_logprobs(reference, branches, 1.0).sum())
    gradient, expected = (m.get_input_embeddings().weight.grad[END] for m in (policy.model, reference))
    assert gradient.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)


def test_importance_weights_by_hand() -> None:
    """0.3 / 0.2 = 1.5, 0.1 / 0.4 = 0.25, and 0.9 / 0.1 = 9, of which 2 are left."""
    trained, engine = (torch.tensor(p, dtype=torch.float64).log() for p in ((0.3, 0.1, 0.9), (0.2, 0.4, 0.1)))
    trained.requires_grad_()
    weights = importance_weights(trained, engine)
    assert weights.tolist() == pytest.approx([1.5, 0.25, 2.0])
    assert not weights.requires_grad
    assert importance_weights(torch.tensor([800.0]), torch.tensor([-800.0])).tolist() == [2.0]


@pytest.mark.parametrize(("temperature", "sampled_at"), [(0.7, 0.7), (1.0, 0.7), (0.7, 1.0)])
@pytest.mark.parametrize("chunk", [3, 10_000])
def test_corrected_gradients_match_transformers(
    temperature: float, sampled_at: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's probabilities are up to e times the policy's, or down to a fifth, at the rollout's
    temperature; the policy's are differentiated at another where that is asked for."""
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *_: chunk)
    model, reference = make_model(), make_model()
    tokens = completion_tokens(BRANCHES)
    weights = torch.linspace(-1, 2, len(tokens), dtype=torch.float64)
    difference = torch.linspace(-1.6, 1.0, len(tokens), dtype=torch.float64)  # engine - policy
    sampled = reference_logprobs(reference, BRANCHES, sampled_at).detach()
    states = TreeForward(Llama(model)).states(BRANCHES, None)
    loss, plain = backward_in_chunks(
        model,
        states,
        tokens,
        weights,
        temperature,
        recorded=sampled + difference,
        recorded_temperature=sampled_at,
    )
    ratio = torch.minimum((-difference).exp(), torch.tensor(2.0))
    expected = -(ratio * weights * reference_logprobs(reference, BRANCHES, temperature)).sum()
    torch.autograd.backward(expected)
    assert 0 < (ratio == 2).sum() < len(ratio)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert gradient_difference(model, reference) < 1e-4
    assert plain.tolist() == pytest.approx(sampled.tolist(), abs=1e-5)
