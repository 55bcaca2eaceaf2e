"""Adapters against PEFT's own modules: logits, gradients, folders."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.adapters import adapted
from helpers.groups import make_groups, make_weights
from helpers.model_configs import make_family
from helpers.plain import independent_loss
from helpers.tiny import END, make_model, make_tokenizer
from reinforce_lite.config import AdapterConfig, UpdateConfig
from reinforce_lite.engines import make_engine
from reinforce_lite.errors import UsageError
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.adapter import read_adapter_folder
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.policy import Policy, load_policy, save_policy
from reinforce_lite.types import Sampling

TARGETS = [(), ("q_proj", "v_proj"), ("k_proj",), ("down_proj",), ("up_proj", "o_proj")]


def peft_model(policy: Policy, folder: Path, trainable: bool = False) -> Any:
    """PEFT's own over a fresh copy of the base model."""
    assert policy.adapter is not None
    folder.mkdir()
    policy.adapter.save(folder, "base")
    base = make_model()
    base.load_state_dict(policy.model.state_dict())
    return PeftModel.from_pretrained(base, folder, is_trainable=trainable)


def gradients(policy: Policy, **changes: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss of the groups by hand, and its gradient by PEFT's names."""
    updater = Updater(policy, UpdateConfig(**changes), temperature=0.7, seed=0)
    gradient = updater.compute_gradient(make_groups(), make_weights())
    return gradient.loss, {name: p.grad.clone() for name, p in updater.params.items() if p.grad is not None}


def largest_difference(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert ours.keys() == expected.keys()
    return max(float((ours[n] - g).norm() / g.norm()) for n, g in expected.items())


@pytest.mark.parametrize("targets", TARGETS)
def test_loss_and_gradients_equal_those_of_peft(
    policy: Policy, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    reference = peft_model(adapted(policy, targets=targets), tmp_path / "saved", trainable=True)
    expected_loss = independent_loss(reference, "reinforce-lite", 0.7)
    torch.autograd.backward(expected_loss)
    named = {n.replace(".default", ""): p.grad for n, p in reference.named_parameters()}
    expected = {name: grad for name, grad in named.items() if grad is not None}
    loss, ours = gradients(policy)
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    assert largest_difference(ours, expected) < 1e-5
    assert all(p.grad is None and not p.requires_grad for p in policy.model.parameters())


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_engines_record_the_log_probabilities_of_peft(policy: Policy, tmp_path: Path, engine: str) -> None:
    reference = peft_model(adapted(policy), tmp_path / "saved")
    prompts = [group.prompt for group in make_groups()]
    for prompt, completions in zip(
        prompts, make_engine(engine, policy).generate(prompts, Sampling(2, 6, 6), seed=3), strict=True
    ):
        for completion in completions:
            ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
            logprobs = torch.log_softmax(reference(ids).logits[0, -7:-1], -1)
            expected = logprobs.gather(1, ids[0, -6:, None]).squeeze(1)
            assert torch.allclose(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-5)


def test_before_the_first_update_it_is_the_base_model_to_the_bit(model_folder: Path, policy: Policy) -> None:
    plain = load_policy(str(model_folder), "float32", "cpu")
    policy.add_adapter(AdapterConfig(rank=2), seed=0)
    prompts = [group.prompt for group in make_groups()]
    ours, expected = (make_engine("native", p).generate(prompts, Sampling(3, 8), 5) for p in (policy, plain))
    assert ours == expected


@pytest.mark.parametrize("changes", [{"micro_batch_tokens": 20}, {"activation_checkpointing": True}])
def test_gradients_do_not_depend_on_what_is_held_at_a_time(policy: Policy, changes: dict[str, Any]) -> None:
    expected = gradients(adapted(policy))
    loss, ours = gradients(policy, **changes)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert largest_difference(ours, expected[1]) < 1e-5


def test_a_bfloat16_base_has_a_float32_adapter(model_folder: Path, policy: Policy) -> None:
    _, expected = gradients(adapted(policy))
    rounded = adapted(load_policy(str(model_folder), "bfloat16", "cpu", keep_float32=False))
    _, ours = gradients(rounded)
    assert {p.dtype for p in rounded.trained_parameters().values()} == {torch.float32}
    assert 0 < largest_difference(ours, expected) < 0.2


def test_the_merged_folder_is_a_plain_model(policy: Policy, tmp_path: Path) -> None:
    reference = peft_model(adapted(policy), tmp_path / "saved")
    ids = torch.arange(20, 40)[None]
    expected = reference(ids).logits
    save_policy(policy, tmp_path / "merged", {})
    merged = load_policy(str(tmp_path / "merged"), "float32", "cpu")
    assert (merged.model(ids).logits - expected).abs().max() < 1e-4
    assert policy.adapter is not None
    policy.adapter.merge()
    assert torch.equal(policy.model(ids).logits, merged.model(ids).logits)


def test_a_folder_of_pefts_own_is_read(policy: Policy, tmp_path: Path) -> None:
    reference = peft_model(adapted(policy), tmp_path / "saved")
    reference.save_pretrained(tmp_path / "theirs")
    saved = read_adapter_folder(str(tmp_path / "theirs"))
    assert saved is not None
    assert (saved.base, saved.config.rank, saved.config.alpha) == ("base", 3, 6.0)
    assert policy.adapter is not None
    expected = {name: p.detach().clone() for name, p in policy.adapter.named_parameters()}
    for parameter in policy.trained_parameters().values():
        parameter.data.zero_()
    policy.adapter.load(saved.folder)
    assert all(torch.equal(expected[name], p) for name, p in policy.adapter.named_parameters())


def test_an_adapter_of_another_model_is_refused(policy: Policy, tmp_path: Path) -> None:
    peft_model(adapted(policy, rank=2), tmp_path / "saved")
    policy.add_adapter(AdapterConfig(rank=3), seed=0)
    assert policy.adapter is not None
    with pytest.raises(UsageError, match="do not fit"):
        policy.adapter.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("peft_type", "IA3"), ("target_modules", "all-linear"), ("rank_pattern", {"q": 2})],
)
def test_an_adapter_of_another_kind_is_refused(policy: Policy, tmp_path: Path, key: str, value: Any) -> None:
    peft_model(adapted(policy), tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UsageError, match=key if key != "peft_type" else "IA3"):
        read_adapter_folder(str(tmp_path / "saved"))


def test_a_target_that_the_model_lacks_is_refused_with_those_it_has(policy: Policy) -> None:
    with pytest.raises(UsageError, match="c_attn") as caught:
        policy.add_adapter(AdapterConfig(rank=1, targets=("c_attn",)), seed=0)
    assert "gate_proj" in caught.value.remedy
    assert "lm_head" not in caught.value.remedy


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["smollm3", "granite", "olmo2", "gemma3"])
def test_families_unlike_llama_are_adapted(tmp_path: Path, family: str, checkpointing: bool) -> None:
    """With norms after the projections, other gains and activations, and prompts that share a prefix."""
    model = make_family(family)
    policy = adapted(Policy(model, make_tokenizer(), frozenset({END}), family, llama=Llama(model)))
    assert policy.adapter is not None
    (tmp_path / "saved").mkdir()
    policy.adapter.save(tmp_path / "saved", "base")
    reference = PeftModel.from_pretrained(make_family(family), tmp_path / "saved", is_trainable=True)
    loss, ours = gradients(policy, activation_checkpointing=checkpointing)
    expected_loss = independent_loss(reference, "reinforce-lite", 0.7)
    torch.autograd.backward(expected_loss)
    named = {n.replace(".default", ""): p.grad for n, p in reference.named_parameters()}
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    assert largest_difference(ours, {n: g for n, g in named.items() if g is not None}) < 1e-5


def test_layers_of_other_families_are_adapted(tmp_path: Path) -> None:
    """GPT-2's linear layers hold their weights transposed; our own forward pass does not know it."""
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    torch.manual_seed(0)
    base = GPT2LMHeadModel(config).eval()
    policy = adapted(Policy(copy.deepcopy(base), make_tokenizer(), frozenset({END}), "gpt2"))
    assert policy.adapter is not None
    (tmp_path / "saved").mkdir()
    policy.adapter.save(tmp_path / "saved", "base")
    reference = PeftModel.from_pretrained(base, tmp_path / "saved", is_trainable=True)
    ids = torch.arange(20, 40)[None]
    assert torch.allclose(policy.model(ids).logits, reference(ids).logits, rtol=0, atol=1e-5)
    loss, ours = gradients(policy)
    expected_loss = independent_loss(reference, "reinforce-lite", 0.7)
    torch.autograd.backward(expected_loss)
    named = {n.replace(".default", ""): p.grad for n, p in reference.named_parameters()}
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    assert largest_difference(ours, {n: g for n, g in named.items() if g is not None}) < 1e-5
    merged = GPT2LMHeadModel(config).eval()
    merged.load_state_dict(policy.adapter.merged_weights())
    assert torch.allclose(merged(ids).logits, reference(ids).logits, rtol=0, atol=1e-5)
