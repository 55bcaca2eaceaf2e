"""The update against an independent one: plain sequences, an explicit loss, torch's AdamW."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, Qwen3Config, Qwen3ForCausalLM

from helpers.device import DEVICE
from helpers.groups import make_groups, make_weights, save_wide
from helpers.plain import independent_loss, sequence_logprobs
from helpers.tiny import END, make_model, make_tokenizer
from reinforce_lite.config import AdapterConfig, PresetName, UpdateConfig
from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.learner import loss
from reinforce_lite.learner.updater import (
    TrainableCompletion,
    TrainableGroup,
    Updater,
    micro_batches,
    trainable_groups,
)
from reinforce_lite.models import prefix_attention, varlen
from reinforce_lite.models.forward import FullSequenceForward, SharedPrefix
from reinforce_lite.models.policy import Policy, load_policy


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def gradient_of(updater: Updater) -> Tensor:
    return flat([m.grad for m in updater.master_weights.values() if m.grad is not None])


@pytest.mark.parametrize(("preset", "temperature"), [("reinforce-lite", 0.7), ("article", 1.0)])
def test_gradient_equals_the_independent_one(policy: Policy, preset: PresetName, temperature: float) -> None:
    updater = Updater(policy, UpdateConfig(), temperature, 0)
    gradient = updater.compute_gradient(make_groups(), make_weights(preset))
    reference = make_model()
    reference.load_state_dict(policy.model.state_dict())
    reference.get_input_embeddings().padding_idx = None
    expected_loss = independent_loss(reference, preset, temperature)
    torch.autograd.backward(expected_loss)
    expected = flat([p.grad for p in reference.parameters()])
    assert gradient.loss == pytest.approx(expected_loss.item(), rel=1e-4)
    assert (gradient_of(updater) - expected).norm() / expected.norm() < 1e-5
    assert gradient.norm == pytest.approx(expected.norm().item(), rel=1e-5)


@pytest.mark.parametrize("budget", [1, 20, 30, 45])
def test_gradient_does_not_depend_on_micro_batches(policy: Policy, budget: int) -> None:
    reference = Updater(policy, UpdateConfig(), 0.7, 0)
    reference.compute_gradient(make_groups(), make_weights())
    expected = gradient_of(reference).clone()
    small = Updater(policy, UpdateConfig(micro_batch_tokens=budget), 0.7, 0)
    small.compute_gradient(make_groups(), make_weights())
    assert (gradient_of(small) - expected).norm() / expected.norm() < 1e-5


def test_micro_batches_by_hand() -> None:
    """Prompts of 9 and 11 tokens, completions sorted to 1, 3, 4, 5 and 1, 1, 2, 4: 52 tokens in all."""

    def cut(budget: int) -> list[list[list[int]]]:
        """The lengths of the completions, by branch, by micro-batch."""
        groups = trainable_groups(make_groups(), make_weights().tolist())
        cost = lambda b: len(b.prompt) + sum(map(len, b.completions))  # noqa: E731
        batches = list(micro_batches(groups, budget, cost))
        assert [c for batch in batches for c in batch.completions] == [
            c for g in groups for c in g.completions
        ]
        assert all(sum(map(cost, b.branches)) <= budget or len(b.completions) == 1 for b in batches)
        return [[[len(c) for c in b.completions] for b in batch.branches] for batch in batches]

    assert cut(52) == [[[1, 3, 4, 5], [1, 1, 2, 4]]]
    assert cut(37) == [[[1, 3, 4, 5], [1, 1, 2]], [[4]]]
    assert cut(19) == [[[1, 3, 4]], [[5]], [[1, 1, 2, 4]]]
    assert cut(18) == [[[1, 3, 4]], [[5]], [[1, 1, 2]], [[4]]]
    assert cut(1) == [[[n]] for n in (1, 3, 4, 5, 1, 1, 2, 4)]


def test_no_signal_group_is_skipped_exactly(policy: Policy) -> None:
    """Its completions could hold anything: neither loss nor gradient sees them."""
    updater = Updater(policy, UpdateConfig(), 0.7, 0)
    with_it = updater.compute_gradient(make_groups(), make_weights())
    expected = gradient_of(updater).clone()
    without = updater.compute_gradient([make_groups()[0], make_groups()[2]], make_weights()[[0, 2]])
    assert torch.equal(gradient_of(updater), expected)
    assert (without.loss, without.tokens) == (with_it.loss, with_it.tokens)
    assert with_it.tokens == 1 + (8 + 13) + (10 + 8)  # the shared first token and each prompt once


def test_no_update_without_signal(policy: Policy) -> None:
    """Not even by AdamW's momentum or weight decay."""
    updater = Updater(policy, UpdateConfig(weight_decay=0.1, learning_rate=0.1), 0.7, 0)
    assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
    before = flat(list(policy.model.parameters())).clone()
    nothing = updater.compute_gradient(make_groups(), torch.zeros(3, 4))
    assert (nothing.loss, nothing.norm, nothing.tokens) == (0, 0, 0)
    assert not updater.apply_gradient(nothing, 2)
    assert torch.equal(flat(list(policy.model.parameters())), before)


def test_a_learning_rate_of_0_changes_no_weight(policy: Policy) -> None:
    """A control: all else happens as in any update."""
    updater = Updater(policy, UpdateConfig(weight_decay=0.1, learning_rate=0), 0.7, 0)
    before = flat(list(policy.model.parameters())).clone()
    gradient = updater.compute_gradient(make_groups(), make_weights())
    assert gradient.norm > 0
    assert updater.apply_gradient(gradient, 1)
    assert torch.equal(flat(list(policy.model.parameters())), before)


@pytest.mark.case(10)
def test_gradient_that_is_not_finite_updates_nothing(policy: Policy) -> None:
    updater = Updater(policy, UpdateConfig(learning_rate=0.1), 0.7, 0)
    before = flat(list(policy.model.parameters())).clone()
    for bad in (math.nan, math.inf):
        assert not updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights() * bad), 1)
    assert torch.equal(flat(list(policy.model.parameters())), before)


class LimitedMemory:
    """Runs out of memory in forward passes of more than `tokens` tokens."""

    def __init__(self, updater: Updater, tokens: int) -> None:
        self.states, self.tokens = updater.forward_pass.states, tokens
        self.calls = 0
        self.refused: list[int] = []
        updater.forward_pass.states = self  # type: ignore[method-assign]

    def __call__(self, branches: Any, prefix: Any) -> Tensor:
        tokens = sum(len(b.prompt) - prefix.length + sum(map(len, b.completions)) for b in branches)
        self.calls += 1
        if tokens > self.tokens:
            self.refused.append(self.calls)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.states(branches, prefix)


@pytest.mark.case(13)
@pytest.mark.parametrize(
    ("requested", "limit", "refused", "left"), [(40, 19, [1], 20), (40, 14, [1, 2], 10), (26, 20, [2], 13)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_oom_gives_the_same_gradient_in_smaller_micro_batches(
    tmp_path: Path,
    dtype: str,
    requested: int,
    limit: int,
    refused: list[int],
    left: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two groups of 8 + (1, 3, 4, 5) and 10 + (1, 1, 2, 4) tokens, after one token that they share.

    A budget of 40, padded, gives a first micro-batch of 8 + 13 and 10 + 2; 20 gives 8 + 8, 8 + 5, 10 + 4 and
    10 + 4; 10 gives single completions, the longest of 14. 26 gives 8 + 8, and then 8 + 5 and 10 + 2, which is
    refused after one has passed.
    """
    save_wide(tmp_path)
    reference = Updater(
        load_policy(str(tmp_path), dtype, DEVICE), UpdateConfig(micro_batch_tokens=40), 0.7, 0
    )
    expected = reference.compute_gradient(make_groups(), make_weights())
    small = Updater(
        load_policy(str(tmp_path), dtype, DEVICE), UpdateConfig(micro_batch_tokens=requested), 0.7, 0
    )
    memory = LimitedMemory(small, limit)
    stats = small.compute_gradient(make_groups(), make_weights())
    assert memory.refused == refused
    assert small.micro_batch_tokens == left
    assert f"micro_batch_tokens {left}" in caplog.text
    if dtype == "float32":
        assert stats.loss == pytest.approx(expected.loss, rel=1e-6)
        assert stats.norm == pytest.approx(expected.norm, rel=1e-6)
        difference = gradient_of(small) - gradient_of(reference)
        assert difference.norm() / gradient_of(reference).norm() < 1e-6
    else:
        assert torch.nn.functional.cosine_similarity(gradient_of(small), gradient_of(reference), dim=0) > 0.99


def test_a_single_completion_that_does_not_fit_raises(policy: Policy) -> None:
    updater = Updater(policy, UpdateConfig(), 0.7, 0)
    LimitedMemory(updater, 3)
    with pytest.raises(DoesNotFitError, match="a single completion does not fit"):
        updater.compute_gradient(make_groups(), make_weights())
    assert has_no_gradient(updater)


def has_no_gradient(updater: Updater) -> bool:
    return all(m.grad is None for m in updater.master_weights.values())


def test_errors_other_than_oom_propagate(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    updater = Updater(policy, UpdateConfig(), 0.7, 0)

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(updater.forward_pass, "states", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        updater.compute_gradient(make_groups(), make_weights())


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointing_changes_only_memory(tmp_path: Path, family: str, dtype: str) -> None:
    """Through our own forward pass, with its in-place rotation, and through transformers' modules, which can't
    share prompts with it; OPT has dropout in training mode. Far less is saved for the backward pass."""
    torch.manual_seed(0)
    models = {
        "llama": lambda: make_model(num_hidden_layers=6, initializer_range=0.1),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**QWEN3)),
        "opt": lambda: OPTForCausalLM(OPTConfig(**OPT)),
    }
    models[family]().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)

    def gradient(config: UpdateConfig) -> tuple[Tensor, float, int]:
        updater = Updater(load_policy(str(tmp_path), dtype, DEVICE), config, 0.7, 0)
        saved: dict[int, int] = {}

        def save(t: Tensor) -> Tensor:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        weights = {p.untyped_storage().data_ptr() for p in updater.params.values()}
        with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
            stats = updater.compute_gradient(make_groups(), make_weights())
        return gradient_of(updater), stats.loss, sum(n for p, n in saved.items() if p not in weights)

    plain, plain_loss, plain_bytes = gradient(UpdateConfig())
    recomputed, recomputed_loss, recomputed_bytes = gradient(UpdateConfig(activation_checkpointing=True))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    assert recomputed_loss == pytest.approx(plain_loss, rel=tolerance)
    assert (recomputed - plain).norm() / plain.norm() < tolerance
    if family != "opt":  # whole sequences are more tokens than shared prompts
        assert recomputed_bytes < 0.7 * plain_bytes


QWEN3: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.1,
    "eos_token_id": END,
}
OPT: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "dropout": 0.1,
    "init_std": 0.1,
    "eos_token_id": END,
}


@pytest.mark.case(13)
@pytest.mark.parametrize("place", ["blocks", "segments", "head", "prefix"])
def test_oom_in_the_backward_pass_leaves_no_gradient_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Once, within autograd, when a part of the gradient has been accumulated."""
    owner, name, at = {
        "blocks": (prefix_attention, "attend_backward", 5),
        "segments": (varlen, "attend_backward", 5),
        "head": (loss, "token_logprobs_and_comparable", 2),
        "prefix": (SharedPrefix, "backward", 1),
    }[place]
    config = UpdateConfig(micro_batch_tokens=20, activation_checkpointing=place in {"blocks", "segments"})
    if place == "blocks":  # what a CPU uses
        monkeypatch.setattr(prefix_attention, "_SegmentsAttention", prefix_attention._BlocksAttention)
    elif place == "segments":  # what a card uses
        monkeypatch.setattr(prefix_attention, "_BlocksAttention", prefix_attention._SegmentsAttention)
    reference = Updater(load_policy(save_wide(tmp_path), "float32", DEVICE), config, 0.7, 0)
    expected = reference.compute_gradient(make_groups(), make_weights())
    retried = Updater(load_policy(str(tmp_path), "float32", DEVICE), config, 0.7, 0)
    real, calls = getattr(owner, name), 0

    def full(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, full)
    stats = retried.compute_gradient(make_groups(), make_weights())
    assert calls > at
    assert retried.micro_batch_tokens == 10
    assert stats.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (gradient_of(retried) - gradient_of(reference)).norm() / gradient_of(reference).norm() < 1e-6


def test_shared_prefix_does_not_count_when_micro_batches_are_halved(policy: Policy) -> None:
    """After 60 shared tokens, completions of 3 and 5 cost 2 + 3 and 2 + 5: a budget of 12 can be halved."""
    updater = Updater(policy, UpdateConfig(micro_batch_tokens=999), 0.7, 0)
    shared = tuple(range(20, 80))
    completions = [TrainableCompletion(tuple(range(40, 40 + n)), 1.0, ()) for n in (3, 5)]
    groups = [
        TrainableGroup((*shared, 100, 101), completions[:1]),
        TrainableGroup((*shared, 102, 103), completions[1:]),
    ]
    updater._halve_micro_batches(groups)
    assert updater.micro_batch_tokens == 6  # of 12 in all
    with pytest.raises(DoesNotFitError):
        updater._halve_micro_batches(
            [
                TrainableGroup((*shared, 100, 101), completions[1:]),
                TrainableGroup((*shared, 102, 103), completions[1:]),
            ]
        )


def test_whole_prompts_count_when_micro_batches_are_halved_without_a_shared_prefix(policy: Policy) -> None:
    """Two prompts of 62 tokens with completions of 3 and 5 cost 65 and 67, 132 in all."""
    updater = Updater(policy, UpdateConfig(micro_batch_tokens=999), 0.7, 0)
    updater.forward_pass = FullSequenceForward(policy.model)
    shared = tuple(range(20, 80))
    groups = [
        TrainableGroup((*shared, 100, 101), [TrainableCompletion((40, 41, 42), 1.0, ())]),
        TrainableGroup((*shared, 102, 103), [TrainableCompletion((40, 41, 42, 43, 44), 1.0, ())]),
    ]
    updater._halve_micro_batches(groups)
    assert updater.micro_batch_tokens == 66
    updater._halve_micro_batches(groups)
    assert updater.micro_batch_tokens == 33
    with pytest.raises(DoesNotFitError):
        updater._halve_micro_batches(groups)


@pytest.mark.parametrize("state", ["32-bit", "8-bit"])
def test_allocated_optimizer_state_changes_no_weight(tmp_path: Path, state: Any) -> None:
    save_wide(tmp_path)

    def trained(allocate_first: bool) -> Tensor:
        policy = load_policy(str(tmp_path), "bfloat16", DEVICE, keep_float32=state == "32-bit")
        updater = Updater(policy, UpdateConfig(learning_rate=1e-2, optimizer_state=state), 0.7, 0)
        before = flat(list(policy.model.parameters())).clone()
        if allocate_first:
            updater.allocate_optimizer_state()
            assert any(name.startswith("exp_avg") for name in updater.state_dict())
            updater.compute_gradient(make_groups(), make_weights())
            updater.allocate_optimizer_state()
            updater.reset_optimizer()
            assert torch.equal(flat(list(policy.model.parameters())), before)
            assert not any(name.startswith("exp_avg") for name in updater.state_dict())
            assert has_no_gradient(updater)
        assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
        assert not torch.equal(flat(list(policy.model.parameters())), before)
        return flat(list(policy.model.parameters()))

    assert torch.equal(trained(True), trained(False))


@pytest.mark.parametrize("state", ["16-bit", "8-bit"])
def test_bfloat16_gradients_accumulate_close_to_float32(tmp_path: Path, state: Any) -> None:
    """Gradients of eight micro-batches, accumulated in bfloat16; the norm itself is not rounded to 8 bits."""
    exact = Updater(load_policy(save_wide(tmp_path), "float32", DEVICE), UpdateConfig(), 0.7, 0)
    exact.compute_gradient(make_groups(), make_weights())
    rough = Updater(
        load_policy(str(tmp_path), "bfloat16", DEVICE, keep_float32=False),
        UpdateConfig(micro_batch_tokens=1, optimizer_state=state),
        0.7,
        0,
    )
    stats = rough.compute_gradient(make_groups(), make_weights())
    a, b = gradient_of(exact), gradient_of(rough).float()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999
    assert stats.norm == pytest.approx(float(b.norm()), rel=1e-4)


def test_three_updates_equal_a_plain_loop(policy: Policy) -> None:
    config = UpdateConfig(learning_rate=1e-2, warmup_steps=2, max_grad_norm=0.05, weight_decay=0.01)
    updater = Updater(policy, config, 0.7, 0)
    reference = make_model()
    reference.load_state_dict(policy.model.state_dict())
    reference.get_input_embeddings().padding_idx = None
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=0.01)
    for step, rate in ((1, 0.005), (2, 0.01), (3, 0.01)):
        gradient = updater.compute_gradient(make_groups(), make_weights())
        assert gradient.norm > 0.05  # so clipping has an effect
        assert updater.apply_gradient(gradient, step)
        optimizer.zero_grad()
        torch.autograd.backward(independent_loss(reference, "reinforce-lite", 0.7))
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert updater.learning_rate(step) == pytest.approx(rate)
    updated, expected = flat(list(policy.model.parameters())), flat(list(reference.parameters()))
    # Adam divides by the gradient's size, so entries near 0 are mere rounding: compare the norm of all.
    assert (updated - expected).norm() / expected.norm() < 1e-4


def test_master_weights_keep_updates_that_bfloat16_loses(model_folder: Path) -> None:
    """At a learning rate of 1e-6 hardly a bfloat16 weight can change; the float32 master weights do."""
    policy = load_policy(str(model_folder), dtype="bfloat16", device=DEVICE)
    assert policy.master_weights is not None
    loaded = flat(list(policy.master_weights.values())).clone()
    updater = Updater(policy, UpdateConfig(learning_rate=1e-6), 0.7, 0)
    rounded = flat(list(policy.model.parameters())).clone()
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(flat(list(updater.master_weights.values())), loaded)  # not the rounded ones
    for step in (1, 2, 3):
        assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), step)
    moved = flat(list(updater.master_weights.values())) != loaded
    assert moved.float().mean() > 0.5
    assert (flat(list(policy.model.parameters())) != rounded).float().mean() < 0.1
    policy_is_rounded = flat(list(updater.master_weights.values())).bfloat16() == flat(
        list(policy.model.parameters())
    )
    assert policy_is_rounded.all()


def test_bfloat16_policy_has_gradients_close_to_float32(policy: Policy, model_folder: Path) -> None:
    exact = Updater(policy, UpdateConfig(), 0.7, 0)
    exact.compute_gradient(make_groups(), make_weights())
    half = load_policy(str(model_folder), dtype="bfloat16", device=DEVICE)
    rough = Updater(half, UpdateConfig(micro_batch_tokens=1), 0.7, 0)
    rough.compute_gradient(make_groups(), make_weights())
    assert all(p.grad is None for p in half.model.parameters())  # moved to the master weights and freed
    a, b = gradient_of(exact), gradient_of(rough)
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    assert b.norm().item() == pytest.approx(a.norm().item(), rel=0.2)


STATES = [("float32", "32-bit"), ("bfloat16", "32-bit"), ("bfloat16", "16-bit"), ("bfloat16", "8-bit")]


@pytest.mark.case(10)
@pytest.mark.parametrize(("dtype", "state"), STATES)
def test_a_state_from_before_the_first_update_has_no_moments(tmp_path: Path, dtype: str, state: Any) -> None:
    """Back from weights that are not finite, the first update is taken as if nothing had been."""
    config = UpdateConfig(learning_rate=1e-2, optimizer_state=state)
    policy = load_policy(save_wide(tmp_path), dtype, DEVICE, keep_float32=state == "32-bit")
    updater = Updater(policy, config, 0.7, 0)
    early = {name: t.clone() for name, t in updater.state_dict().items()}
    updater.compute_gradient(make_groups(), make_weights())
    for master in updater.master_weights.values():
        assert master.grad is not None
        master.grad.fill_(math.nan)
    updater.optimizer.step(1e-2, 1)
    updater.load_state_dict(early)
    assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
    fresh = Updater(load_policy(str(tmp_path), dtype, DEVICE, keep_float32=state == "32-bit"), config, 0.7, 0)
    assert fresh.apply_gradient(fresh.compute_gradient(make_groups(), make_weights()), 1)
    trained = [flat(list(u.policy.model.parameters())) for u in (updater, fresh)]
    assert torch.equal(*trained)


@pytest.mark.parametrize(("dtype", "state"), STATES)
def test_state_dict_round_trip_continues_bit_for_bit(tmp_path: Path, dtype: str, state: Any) -> None:
    """Two updates equal one, saved, loaded elsewhere, and another."""
    config = UpdateConfig(learning_rate=1e-2, optimizer_state=state)
    policy = load_policy(save_wide(tmp_path), dtype, DEVICE, keep_float32=state == "32-bit")
    first = Updater(policy, config, 0.7, 0)
    assert first.apply_gradient(first.compute_gradient(make_groups(), make_weights()), 1)
    state_dict = {name: t.clone() for name, t in first.state_dict().items()}
    assert first.apply_gradient(first.compute_gradient(make_groups(), make_weights()), 2)
    assert sum(t.nbytes for t in state_dict.values()) == pytest.approx(first.state_bytes, rel=0.05)
    other = load_policy(str(tmp_path), dtype, DEVICE, keep_float32=state == "32-bit")
    second = Updater(other, config, 0.7, 0)
    second.load_state_dict(state_dict)
    assert second.apply_gradient(second.compute_gradient(make_groups(), make_weights()), 2)
    assert torch.equal(flat(list(other.model.parameters())), flat(list(policy.model.parameters())))


@pytest.mark.case(10)
@pytest.mark.parametrize(("dtype", "state"), STATES)
def test_restart_from_a_loaded_model_is_a_new_updater(tmp_path: Path, dtype: str, state: Any) -> None:
    """Whatever two updates and infinite weights have left in weights and optimizer."""
    config, name = UpdateConfig(learning_rate=1e-2, optimizer_state=state), save_wide(tmp_path)

    def load() -> Policy:
        return load_policy(name, dtype, DEVICE, keep_float32=state == "32-bit")

    policy = load()
    updater = Updater(policy, config, 0.7, 0)
    assert updater.weights_are_finite()
    for step in (1, 2):
        assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), step)
    for master in updater.master_weights.values():
        master.data.fill_(math.inf)
    updater.sync_policy()
    assert not updater.weights_are_finite()
    updater.restart_from(load())
    new = Updater(load(), config, 0.7, 0)
    for each in (updater, new):
        assert each.apply_gradient(each.compute_gradient(make_groups(), make_weights()), 1)
    left, expected = updater.state_dict(), new.state_dict()
    assert left.keys() == expected.keys()
    assert all(torch.equal(left[key], expected[key]) for key in expected)
    assert torch.equal(flat(list(policy.model.parameters())), flat(list(new.policy.model.parameters())))


@pytest.mark.case(8)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_signal_is_heard_inside_a_backward_pass(dtype: str, model_folder: Path) -> None:
    """Python code runs for each parameter: otherwise the whole pass is one call that nothing interrupts."""
    updater = Updater(load_policy(str(model_folder), dtype, DEVICE), UpdateConfig(), 0.7, 0)
    for param in updater.params.values():
        assert getattr(param, "_post_accumulate_grad_hooks", None)


def test_the_weights_are_counted_each_time_they_change(policy: Policy) -> None:
    """An engine with a copy of them asks for it."""
    updater = Updater(policy, UpdateConfig(), 0.7, 0)
    updater.apply_gradient(updater.compute_gradient(make_groups(), torch.zeros(3, 4)), 1)
    assert policy.version == 0
    updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 2)
    assert policy.version == 1
    updater.load_state_dict(updater.state_dict())
    assert policy.version == 2
    policy.add_adapter(AdapterConfig(rank=2), seed=0)
    assert policy.adapter is not None
    updater = Updater(policy, UpdateConfig(), 0.7, 0)
    updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
    assert (policy.version, policy.adapter.version) == (2, 1)
    with policy.adapter.perturbed():
        assert policy.adapter.version == 2
    assert policy.adapter.version == 3


def test_a_correction_weighs_each_token_by_what_the_engine_recorded(policy: Policy) -> None:
    """The recorded log-probabilities are 0: the policy's own probabilities at 0.7 are the weights, below 2."""
    updater = Updater(policy, UpdateConfig(), 0.7, 0, corrected_at=0.7)
    gradient = updater.compute_gradient(make_groups(), make_weights())
    model = make_model()
    expected = 0.0
    for group, row in zip(make_groups(), make_weights().tolist(), strict=True):
        for rollout, weight in zip(group.rollouts, row, strict=True):
            logprobs = sequence_logprobs(
                model, group.prompt.token_ids, rollout.completion.token_ids, 0.7
            ).detach()
            expected -= weight * float((logprobs.exp() * logprobs).sum())
    assert gradient.loss == pytest.approx(expected, rel=1e-4)
