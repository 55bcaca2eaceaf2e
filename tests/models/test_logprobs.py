"""Log-probabilities and gradients against plain transformers, one unpadded sequence at a time."""

from typing import Any

import pytest
import torch

from helpers.plain import BRANCHES, COMPLETIONS, PROMPT, plain_of, relative_difference, tokens_of
from helpers.tiny import END, make_model
from reinforce_lite.learner import loss as loss_module
from reinforce_lite.learner.loss import backward_in_chunks
from reinforce_lite.models.forward import (
    FullSequenceForward,
    SharedPromptForward,
    TreeForward,
    can_share_prompt,
    common_prefix_length,
)
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.logprobs import token_logprobs
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_tree import Branch

WAYS: dict[str, Any] = {
    "tree": lambda m: TreeForward(Llama(m)),
    "shared": SharedPromptForward,
    "whole": FullSequenceForward,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_plain_transformers(way: str, temperature: float) -> None:
    model = make_model()
    states = WAYS[way](model).states(BRANCHES, None)
    found = token_logprobs(model, states, tokens_of(BRANCHES), temperature)
    expected = plain_of(model, BRANCHES, temperature)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=2e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunk", [1, 5, 10_000], ids=["one token", "five", "all"])
def test_gradients_are_those_of_plain_transformers(
    way: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens' logits are made at once."""
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *_: chunk)
    model, reference = make_model(), make_model()
    tokens = tokens_of(BRANCHES)
    weights = torch.linspace(-1, 2, len(tokens), dtype=torch.float64)
    loss = backward_in_chunks(model, WAYS[way](model).states(BRANCHES, None), tokens, weights, 0.7)
    expected = -(weights * plain_of(reference, BRANCHES, 0.7)).sum()
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert relative_difference(model, reference) < 1e-5


@pytest.mark.parametrize("way", ["tree", "shared"])
@pytest.mark.parametrize("shared", [1, 3, 5])
def test_a_prefix_shared_by_several_prompts_is_exact(way: str, shared: int) -> None:
    """Log-probabilities, and gradients that come back through the prefix once, after everything else."""
    model, reference = make_model(), make_model()
    passes = WAYS[way](model)
    prefix = passes.prefix(PROMPT[:shared])
    assert prefix is not None
    for weight, part in enumerate([BRANCHES[:1], BRANCHES[1:]], start=1):
        found = token_logprobs(model, passes.states(part, prefix), tokens_of(part), 0.7)
        (weight * found.sum()).backward()  # type: ignore[no-untyped-call]
        expected = plain_of(reference, part, 0.7)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=2e-5)
        (weight * expected.sum()).backward()  # type: ignore[no-untyped-call]
    before = relative_difference(model, reference)
    prefix.backward()
    assert relative_difference(model, reference) < 1e-5 < before


def test_common_prefix_by_hand() -> None:
    assert common_prefix_length([(1, 2, 3, 4), (1, 2, 5), (1, 2, 3)]) == 2
    assert common_prefix_length([(1, 2, 3), (1, 2, 3)]) == 2  # each keeps one of its own
    assert common_prefix_length([(1, 2), (3, 2)]) == 0
    assert common_prefix_length([(1,), (1, 2)]) == 0


@pytest.mark.parametrize("way", WAYS)
def test_padding_is_never_looked_at(way: str) -> None:
    """Beside a longer completion, and when the end token is the padding, nothing changes."""
    model = make_model()
    passes = WAYS[way](model)
    short, beside = [Branch(PROMPT, [(60, END)])], [Branch(PROMPT, [(60, END), (END,) * 9])]
    alone = token_logprobs(model, passes.states(short, None), tokens_of(short))
    both = token_logprobs(model, passes.states(beside, None), tokens_of(beside))
    assert both[:2].tolist() == pytest.approx(alone.tolist(), abs=1e-6)
    assert len(both) == 2 + 9


@pytest.mark.parametrize("way", WAYS)
def test_a_one_token_prompt_and_one_token_answers(way: str) -> None:
    model = make_model()
    branches = [Branch((1,), [(END,), (50,)])]
    found = token_logprobs(model, WAYS[way](model).states(branches, None), tokens_of(branches))
    assert found.tolist() == pytest.approx(plain_of(model, branches, 1.0).tolist(), abs=2e-5)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_branch_costs_by_hand(way: str) -> None:
    """A prompt of 6 and answers of 5, 2, 1 and 7: padded to the longest, and each with its prompt."""
    cost = WAYS[way](make_model()).tokens(BRANCHES[0])
    assert cost == {"tree": 6 + 4 * 7, "shared": 6 + 4 * 7, "whole": 4 * (6 + 7)}[way]


def test_models_that_forget_are_not_shared() -> None:
    assert can_share_prompt(make_model())
    window = make_model()
    window.config.sliding_window = 8
    assert not can_share_prompt(window)
    mixed = make_model()
    mixed.config.layer_types = ["full_attention", "sliding_attention"]
    assert not can_share_prompt(mixed)


def test_a_dropped_cache_is_noticed() -> None:
    """Activation checkpointing in transformers drops the prompt's cache with only a log line."""
    model = make_model()
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(AssertionError, match="not kept"):
        SharedPromptForward(model).states(BRANCHES, None)


def test_the_end_token_learns_although_it_is_the_padding(policy: Policy) -> None:
    """Chat templates put end tokens into the prompt, and torch gives a padding row no gradient."""
    branches = [Branch((1, 40, END, 41), COMPLETIONS)]
    tokens = tokens_of(branches)
    assert policy.llama is not None
    states = TreeForward(policy.llama).states(branches, None)
    backward_in_chunks(policy.model, states, tokens, -torch.ones(len(tokens)), 1.0)
    reference = make_model(pad_token_id=None)
    reference.load_state_dict(policy.model.state_dict())
    plain_of(reference, branches, 1.0).sum().backward()  # type: ignore[no-untyped-call]
    found, expected = (m.get_input_embeddings().weight.grad[END] for m in (policy.model, reference))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)
