"""Logits and token log-probabilities against torch's own functions and hand-worked values."""

import pytest
import torch

from helpers.tiny import make_model
from reinforce_lite.models.logprobs import final_logits, token_logprobs, tokens_per_chunk


def hidden_states(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_and_gradients_match_log_softmax(temperature: float) -> None:
    model, tokens = make_model(), torch.tensor([3, 258, 0, 3])
    states, reference = (hidden_states().requires_grad_() for _ in range(2))
    logprobs = token_logprobs(model, states, tokens, temperature)
    expected = torch.log_softmax(model.lm_head(reference) / temperature, -1)[range(len(tokens)), tokens]
    torch.testing.assert_close(logprobs, expected)
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0])
    torch.autograd.backward((logprobs * weights).sum())
    torch.autograd.backward((expected * weights).sum())
    torch.testing.assert_close(states.grad, reference.grad)


def test_token_logprobs_of_bfloat16_are_float32() -> None:
    model = make_model().bfloat16()
    assert token_logprobs(model, hidden_states(1).bfloat16(), torch.tensor([3])).dtype == torch.float32


def test_final_logits_apply_a_familys_cap_and_scales() -> None:
    model, states = make_model(), hidden_states()
    plain = model.lm_head(states)
    model.config.final_logit_softcapping = 30.0
    torch.testing.assert_close(final_logits(model, states), 30 * torch.tanh(plain / 30))
    model.config.final_logit_softcapping = None
    model.config.logits_scaling, model.config.logit_scale = 8.0, 0.5
    torch.testing.assert_close(final_logits(model, states), plain / 16)


def test_tokens_per_chunk_by_hand() -> None:
    """2^24 logits on a CPU, 2^27 on a CUDA device, but never fewer than 256 tokens."""
    assert tokens_per_chunk("cpu", 49_152) == 341
    assert tokens_per_chunk("cpu", 151_936) == 256
    assert tokens_per_chunk("cuda", 151_936) == 883
    assert tokens_per_chunk("mps", 49_152) == 341
