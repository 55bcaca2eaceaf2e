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
from reinforce_lite.learner.loss import backward_in_chunks
from reinforce_lite.models.forward import TreeForward
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
