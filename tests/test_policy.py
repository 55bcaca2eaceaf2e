"""Log-probabilities against plain transformers, one unpadded sequence at a time."""

from typing import Any

import pytest
import torch
from conftest import END, make_model

from reinforce_lite.models import Policy
from reinforce_lite.policy import Prefix, can_share_prompt, common_prefix, completion_logprobs

PROMPT = (1, 40, 41, 42, 43, 44)
COMPLETIONS = [(50, 51, 52, 53, END), (60, END), (END,), (70, 71, 72, 73, 74, 75, 76)]


def plain(
    model: Any, prompt: tuple[int, ...], completion: tuple[int, ...], temperature: float
) -> torch.Tensor:
    """The independent path: whole sequence, no padding, no cache, log_softmax of everything."""
    ids = torch.tensor([prompt + completion])
    logits = model(ids, use_cache=False).logits[0].double() / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return torch.stack([logprobs[place, token] for place, token in zip(places, completion, strict=True)])


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_plain_transformers(share: bool, temperature: float) -> None:
    model = make_model()
    found = completion_logprobs(model, PROMPT, COMPLETIONS, temperature, share)
    for completion, logprobs in zip(COMPLETIONS, found, strict=True):
        expected = plain(model, PROMPT, completion, temperature)
        assert logprobs.tolist() == pytest.approx(expected.tolist(), abs=2e-5)


@pytest.mark.parametrize("share", [True, False])
def test_gradients_are_those_of_plain_transformers(share: bool) -> None:
    weights = [0.3, -0.7, 1.1, 0.5]
    model, reference = make_model(), make_model()
    found = completion_logprobs(model, PROMPT, COMPLETIONS, 0.7, share)
    sum(w * lp.sum() for w, lp in zip(weights, found, strict=True)).backward()  # type: ignore[union-attr]
    for w, completion in zip(weights, COMPLETIONS, strict=True):
        (w * plain(reference, PROMPT, completion, 0.7).sum()).backward()
    difference = torch.cat(
        [(a.grad - b.grad).flatten() for a, b in zip(model.parameters(), reference.parameters(), strict=True)]
    )
    size = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
    assert difference.norm() / size < 1e-5


@pytest.mark.parametrize("shared", [1, 3, 5])
def test_a_prefix_shared_by_several_prompts_is_exact(shared: int) -> None:
    """Log-probabilities, and gradients that come back through the prefix once, after everything else."""
    prompts = [PROMPT, (*PROMPT[:5], 90, 91), (*PROMPT[:5], 92)]
    model, reference = make_model(), make_model()
    prefix = Prefix(model, PROMPT[:shared])
    for weight, prompt in enumerate(prompts, start=1):
        found = completion_logprobs(model, prompt, COMPLETIONS, 0.7, prefix=prefix)
        (weight * torch.cat(found).sum()).backward()
        expected = [plain(reference, prompt, c, 0.7) for c in COMPLETIONS]
        assert torch.cat(found).tolist() == pytest.approx(torch.cat(expected).tolist(), abs=2e-5)
        (weight * torch.cat(expected).sum()).backward()
    before = _relative_difference(model, reference)
    prefix.backward()
    assert _relative_difference(model, reference) < 1e-5 < before


def _relative_difference(model: Any, reference: Any) -> float:
    pairs = list(zip(model.parameters(), reference.parameters(), strict=True))
    difference = torch.cat([(a.grad - b.grad).flatten() for a, b in pairs]).norm()
    return float(difference / torch.cat([b.grad.flatten() for _, b in pairs]).norm())


def test_common_prefix_by_hand() -> None:
    assert common_prefix([(1, 2, 3, 4), (1, 2, 5), (1, 2, 3)]) == 2
    assert common_prefix([(1, 2, 3), (1, 2, 3)]) == 2  # each keeps one of its own
    assert common_prefix([(1, 2), (3, 2)]) == 0
    assert common_prefix([(1,), (1, 2)]) == 0


def test_padding_is_never_looked_at() -> None:
    """Beside a longer completion, and when the end token is the padding, nothing changes."""
    model = make_model()
    alone = completion_logprobs(model, PROMPT, [(60, END)])[0]
    beside = completion_logprobs(model, PROMPT, [(60, END), (END,) * 9])[0]
    assert beside.tolist() == pytest.approx(alone.tolist(), abs=1e-6)
    assert len(beside) == 2


def test_a_one_token_prompt_and_one_token_answers() -> None:
    model = make_model()
    found = completion_logprobs(model, (1,), [(END,), (50,)])
    expected = [plain(model, (1,), c, 1.0).item() for c in [(END,), (50,)]]
    assert [lp.item() for lp in found] == pytest.approx(expected, abs=2e-5)


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
        completion_logprobs(model, PROMPT, COMPLETIONS)


def test_the_end_token_learns_although_it_is_the_padding(policy: Policy) -> None:
    """Chat templates put end tokens into the prompt, and torch gives a padding row no gradient."""
    prompt = (1, 40, END, 41)
    sum(lp.sum() for lp in completion_logprobs(policy.model, prompt, COMPLETIONS)).backward()  # type: ignore[union-attr]
    reference = make_model(pad_token_id=None)
    reference.load_state_dict(policy.model.state_dict())
    for completion in COMPLETIONS:
        plain(reference, prompt, completion, 1.0).sum().backward()
    found, expected = (m.get_input_embeddings().weight.grad[END] for m in (policy.model, reference))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)
