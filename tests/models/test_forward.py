"""All forward passes against plain transformers, one unpadded sequence at a time."""

import pytest
import torch

from helpers.plain import (
    BRANCHES,
    FORWARD_PASSES,
    PROMPT,
    completion_tokens,
    gradient_difference,
    reference_logprobs,
)
from helpers.tiny import END, make_model
from reinforce_lite.models.forward import (
    SharedPromptForward,
    build_forward_pass,
    can_share_prompt,
    common_prefix_length,
)
from reinforce_lite.models.logprobs import token_logprobs
from reinforce_lite.models.prefix_tree import Branch


@pytest.mark.parametrize("name", FORWARD_PASSES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_match_transformers(name: str, temperature: float) -> None:
    model = make_model()
    states = FORWARD_PASSES[name](model).states(BRANCHES, None)
    logprobs = token_logprobs(model, states, completion_tokens(BRANCHES), temperature)
    expected = reference_logprobs(model, BRANCHES, temperature)
    assert logprobs.tolist() == pytest.approx(expected.tolist(), abs=2e-5)


@pytest.mark.parametrize("name", ["tree", "shared prompt"])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_shared_prefix_is_exact(name: str, length: int) -> None:
    """Log-probabilities, and gradients that pass through the prefix once, after all others."""
    model, reference = make_model(), make_model()
    forward = FORWARD_PASSES[name](model)
    prefix = forward.prefix(PROMPT[:length])
    for weight, branches in enumerate([BRANCHES[:1], BRANCHES[1:]], start=1):
        logprobs = token_logprobs(model, forward.states(branches, prefix), completion_tokens(branches), 0.7)
        torch.autograd.backward(weight * logprobs.sum())
        expected = reference_logprobs(reference, branches, 0.7)
        assert logprobs.tolist() == pytest.approx(expected.tolist(), abs=2e-5)
        torch.autograd.backward(weight * expected.sum())
    before = gradient_difference(model, reference)
    prefix.backward()
    assert gradient_difference(model, reference) < 1e-5 < before


def test_common_prefix_length_by_hand() -> None:
    assert common_prefix_length([(1, 2, 3, 4), (1, 2, 5), (1, 2, 3)]) == 2
    assert common_prefix_length([(1, 2, 3), (1, 2, 3)]) == 2  # one token must follow the prefix
    assert common_prefix_length([(1, 2), (3, 2)]) == 0
    assert common_prefix_length([(1,), (1, 2)]) == 0


@pytest.mark.parametrize("name", FORWARD_PASSES)
def test_padding_is_never_attended_to(name: str) -> None:
    """A longer completion alongside changes nothing, although the end token is the padding."""
    model = make_model()
    forward = FORWARD_PASSES[name](model)
    short, longer = (60, END), (END,) * 9
    alone, padded = [Branch(PROMPT, [short])], [Branch(PROMPT, [short, longer])]
    expected = token_logprobs(model, forward.states(alone, None), completion_tokens(alone))
    logprobs = token_logprobs(model, forward.states(padded, None), completion_tokens(padded))
    assert logprobs[: len(short)].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert len(logprobs) == len(short) + len(longer)


@pytest.mark.parametrize("name", FORWARD_PASSES)
def test_one_token_prompt_and_one_token_completions(name: str) -> None:
    model = make_model()
    branches = [Branch((1,), [(END,), (50,)])]
    states = FORWARD_PASSES[name](model).states(branches, None)
    logprobs = token_logprobs(model, states, completion_tokens(branches))
    assert logprobs.tolist() == pytest.approx(reference_logprobs(model, branches, 1.0).tolist(), abs=2e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tree", 6 + 4 * 7), ("shared prompt", 6 + 4 * 7), ("full sequence", 4 * (6 + 7))],
)
def test_tokens_of_a_branch_by_hand(name: str, expected: int) -> None:
    """A prompt of 6 and completions of 5, 2, 1 and 7: padded to the longest."""
    assert FORWARD_PASSES[name](make_model()).tokens(BRANCHES[0]) == expected


def test_can_share_prompt_rejects_sliding_windows() -> None:
    assert can_share_prompt(make_model())
    window = make_model()
    window.config.sliding_window = 8
    assert not can_share_prompt(window)
    mixed = make_model()
    mixed.config.layer_types = ["full_attention", "sliding_attention"]
    assert not can_share_prompt(mixed)


def test_checkpointing_ends_with_its_forward_pass() -> None:
    """A base that runs share has one pass after another over the same modules."""
    model = make_model()
    build_forward_pass(model, None, checkpointing=True)
    states = build_forward_pass(model, None).states(BRANCHES, None)
    torch.autograd.backward(states.sum())
    other = make_model()
    expected = SharedPromptForward(other).states(BRANCHES, None)
    torch.autograd.backward(expected.sum())
    assert torch.equal(states, expected)
    gradients = [[p.grad for p in m.base_model.parameters()] for m in (model, other)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_dropped_cache_is_noticed() -> None:
    """transformers' activation checkpointing drops the prompt's cache with only a log line."""
    model = make_model()
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(AssertionError, match="not kept"):
        SharedPromptForward(model).states(BRANCHES, None)
