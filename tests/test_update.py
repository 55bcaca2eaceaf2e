"""The update against an independent one: plain sequences, a written-out loss, torch's AdamW."""

import math
from pathlib import Path

import pytest
import torch
from conftest import END, make_model
from torch import Tensor

from reinforce_lite import config
from reinforce_lite.models import Policy, load
from reinforce_lite.objective import PRESETS, advantages, weights
from reinforce_lite.records import Completion, Group, Problem, Prompt, Rollout, Verdict
from reinforce_lite.update import Updater, live, micro_batches

LENGTHS = [[3, 5, 1, 4], [2, 2, 6, 3], [4, 1, 1, 2]]
REWARDS = [
    [1.0, 0.0, 0.0, 1.0],
    [0.0, 0.0, 0.0, 0.0],
    [1.0, 1.0, 0.0, 1.0],
]  # the middle group teaches nothing


def make_groups(rewards: list[list[float]] = REWARDS) -> list[Group]:
    groups = []
    for q, (row, lengths) in enumerate(zip(rewards, LENGTHS, strict=True)):
        rollouts = []
        for i, (reward, length) in enumerate(zip(row, lengths, strict=True)):
            ids = (*(20 + 7 * q + 3 * i + t for t in range(length - 1)), END)
            completion = Completion(ids, "", False, (0.0,) * length)
            rollouts.append(Rollout(completion, "", reward, Verdict(reward == 1, None, ""), None))
        prompt = Prompt((1, *range(30 + q, 36 + 2 * q), END, 40))
        groups.append(Group(Problem(str(q), "", ""), prompt, tuple(rollouts)))
    return groups


def some_weights(preset: str = "reinforce-lite") -> Tensor:
    return weights(advantages(REWARDS, PRESETS[preset]), LENGTHS, PRESETS[preset], max_new_tokens=8)


def independent_loss(model: torch.nn.Module, preset: str, temperature: float) -> Tensor:
    """- mean over all 12 answers of A / 8 * sum log pi, answer by answer, from the formulas of the table."""
    total = torch.zeros(())
    n = 3 if preset == "article" else 12
    for group, rewards in zip(make_groups(), REWARDS, strict=True):
        for i, rollout in enumerate(group.rollouts):
            others = torch.tensor(rewards[:i] + rewards[i + 1 :])
            if len(set(rewards)) == 1 or (preset == "article" and i > 0):
                continue
            a = ((rewards[i] - others.mean()) / (others.std() + 1e-8)).clamp(-2, 2)
            ids = torch.tensor([group.prompt.token_ids + rollout.completion.token_ids])
            logprobs = torch.log_softmax(model(ids).logits[0] / temperature, -1)
            start = len(group.prompt.token_ids)
            summed = sum(logprobs[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))
            total = total - a * summed / (n if preset == "article" else n * 8)
    return total


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def gradient_of(updater: Updater) -> Tensor:
    return flat([m.grad for m in updater.masters.values() if m.grad is not None])


@pytest.mark.parametrize(("preset", "temperature"), [("reinforce-lite", 0.7), ("article", 1.0)])
def test_gradient_is_the_independent_one(policy: Policy, preset: str, temperature: float) -> None:
    updater = Updater(policy, config.Update(), temperature)
    gradient = updater.gradient(make_groups(), some_weights(preset))
    reference = make_model()
    reference.load_state_dict(policy.model.state_dict())
    reference.get_input_embeddings().padding_idx = None
    loss = independent_loss(reference, preset, temperature)
    loss.backward()
    expected = flat([p.grad for p in reference.parameters()])
    assert gradient.loss == pytest.approx(loss.item(), rel=1e-4)
    assert (gradient_of(updater) - expected).norm() / expected.norm() < 1e-5
    assert gradient.norm == pytest.approx(expected.norm().item(), rel=1e-5)


@pytest.mark.parametrize("budget", [1, 20, 30, 45])
def test_gradient_does_not_depend_on_the_micro_batch(policy: Policy, budget: int) -> None:
    whole = Updater(policy, config.Update(), 0.7)
    whole.gradient(make_groups(), some_weights())
    expected = gradient_of(whole).clone()
    small = Updater(policy, config.Update(micro_batch_tokens=budget), 0.7)
    small.gradient(make_groups(), some_weights())
    assert (gradient_of(small) - expected).norm() / expected.norm() < 1e-5


def test_micro_batches_by_hand() -> None:
    """Prompts of 9 and 11 tokens, answers sorted to 1, 3, 4, 5 and 1, 1, 2, 4: 52 tokens in all."""

    def cut(budget: int) -> list[list[list[int]]]:
        """Of each micro-batch, of each branch, the completions' lengths."""
        answers = live(make_groups(), some_weights().tolist())
        cost = lambda b: len(b.prompt) + sum(map(len, b.completions))  # noqa: E731
        found = list(micro_batches(answers, budget, cost))
        assert [w for batch in found for w in batch.weights] == [w for g in answers for _, w in g.answers]
        assert all(batch.tokens <= budget or len(batch.weights) == 1 for batch in found)
        return [[[len(c) for c in b.completions] for b in batch.branches] for batch in found]

    assert cut(52) == [[[1, 3, 4, 5], [1, 1, 2, 4]]]
    assert cut(37) == [[[1, 3, 4, 5], [1, 1, 2]], [[4]]]
    assert cut(19) == [[[1, 3, 4]], [[5]], [[1, 1, 2, 4]]]
    assert cut(18) == [[[1, 3, 4]], [[5]], [[1, 1, 2]], [[4]]]
    assert cut(1) == [[[n]] for n in (1, 3, 4, 5, 1, 1, 2, 4)]


def test_a_group_that_teaches_nothing_is_skipped_exactly(policy: Policy) -> None:
    """Its completions could hold anything: neither loss nor gradient sees them."""
    updater = Updater(policy, config.Update(), 0.7)
    with_it = updater.gradient(make_groups(), some_weights())
    expected = gradient_of(updater).clone()
    without = updater.gradient([make_groups()[0], make_groups()[2]], some_weights()[[0, 2]])
    assert torch.equal(gradient_of(updater), expected)
    assert (without.loss, without.tokens) == (with_it.loss, with_it.tokens)
    assert with_it.tokens == 1 + (8 + 13) + (10 + 8)  # the shared first token and each prompt once


def test_no_live_group_no_update(policy: Policy) -> None:
    """Not even by AdamW's momentum or weight decay."""
    updater = Updater(policy, config.Update(weight_decay=0.1, learning_rate=0.1), 0.7)
    assert updater.apply(updater.gradient(make_groups(), some_weights()), 1)
    before = flat(list(policy.model.parameters())).clone()
    nothing = updater.gradient(make_groups(), torch.zeros(3, 4))
    assert (nothing.loss, nothing.norm, nothing.tokens) == (0, 0, 0)
    assert not updater.apply(nothing, 2)
    assert torch.equal(flat(list(policy.model.parameters())), before)


def test_a_gradient_that_is_not_finite_moves_nothing(policy: Policy) -> None:
    updater = Updater(policy, config.Update(learning_rate=0.1), 0.7)
    before = flat(list(policy.model.parameters())).clone()
    for bad in (math.nan, math.inf):
        assert not updater.apply(updater.gradient(make_groups(), some_weights() * bad), 1)
    assert torch.equal(flat(list(policy.model.parameters())), before)


def test_three_updates_are_those_of_a_plain_loop(policy: Policy) -> None:
    section = config.Update(learning_rate=1e-2, warmup_steps=2, max_grad_norm=0.05, weight_decay=0.01)
    updater = Updater(policy, section, 0.7)
    reference = make_model()
    reference.load_state_dict(policy.model.state_dict())
    reference.get_input_embeddings().padding_idx = None
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=0.01)
    for step, rate in ((1, 0.005), (2, 0.01), (3, 0.01)):
        gradient = updater.gradient(make_groups(), some_weights())
        assert gradient.norm > 0.05  # so the clipping is real
        assert updater.apply(gradient, step)
        optimizer.zero_grad()
        independent_loss(reference, "reinforce-lite", 0.7).backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert updater.learning_rate(step) == pytest.approx(rate)
    found, expected = flat(list(policy.model.parameters())), flat(list(reference.parameters()))
    # Adam divides by the gradient's own size, so an entry near 0 is all rounding: compare them as a whole.
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_bfloat16_keeps_small_updates_in_float32(model_folder: Path) -> None:
    """At a rate of 1e-6 hardly a bfloat16 weight can move; the float32 ones behind them all add up."""
    policy = load(str(model_folder), dtype="bfloat16", device="cpu")
    assert policy.weights is not None
    fine = flat(list(policy.weights.values())).clone()
    updater = Updater(policy, config.Update(learning_rate=1e-6), 0.7)
    rounded = flat(list(policy.model.parameters())).clone()
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(flat(list(updater.masters.values())), fine)  # not the rounded ones
    for step in (1, 2, 3):
        assert updater.apply(updater.gradient(make_groups(), some_weights()), step)
    moved = flat(list(updater.masters.values())) != fine
    assert moved.float().mean() > 0.5
    assert (flat(list(policy.model.parameters())) != rounded).float().mean() < 0.1
    policy_is_rounded = flat(list(updater.masters.values())).bfloat16() == flat(
        list(policy.model.parameters())
    )
    assert policy_is_rounded.all()


def test_bfloat16_gradients_are_near_the_float32_ones(policy: Policy, model_folder: Path) -> None:
    exact = Updater(policy, config.Update(), 0.7)
    exact.gradient(make_groups(), some_weights())
    half = load(str(model_folder), dtype="bfloat16", device="cpu")
    rough = Updater(half, config.Update(micro_batch_tokens=1), 0.7)
    rough.gradient(make_groups(), some_weights())
    assert all(p.grad is None for p in half.model.parameters())  # handed over and freed
    a, b = gradient_of(exact), gradient_of(rough)
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    assert b.norm().item() == pytest.approx(a.norm().item(), rel=0.2)


def test_state_goes_round(policy: Policy, model_folder: Path) -> None:
    """Two updates equal one, saved, loaded elsewhere, and one more: bit for bit."""
    first = Updater(policy, config.Update(learning_rate=1e-2), 0.7)
    assert first.apply(first.gradient(make_groups(), some_weights()), 1)
    state = {name: t.clone() for name, t in first.state().items()}
    assert first.apply(first.gradient(make_groups(), some_weights()), 2)
    other = load(str(model_folder), dtype="float32", device="cpu")
    second = Updater(other, config.Update(learning_rate=1e-2), 0.7)
    second.load(state)
    assert second.apply(second.gradient(make_groups(), some_weights()), 2)
    assert torch.equal(flat(list(other.model.parameters())), flat(list(policy.model.parameters())))
