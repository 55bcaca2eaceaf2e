"""Frozen weights in 8 bits, against the same numbers computed by hand and a plain model of those numbers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from helpers.adapters import adapted
from helpers.groups import make_groups, make_weights
from reinforce_lite.config import UpdateConfig
from reinforce_lite.engines import make_engine
from reinforce_lite.errors import UsageError
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.int8 import Int8Linear, dequantize, quantize, quantize_linears
from reinforce_lite.models.policy import Policy, load_policy, save_policy
from reinforce_lite.types import Sampling


def by_hand(weight: Tensor) -> Tensor:
    """What a float32 weight becomes, one number at a time."""
    rows = []
    for row in weight.tolist():
        scale = float(torch.tensor(max(map(abs, row)) / 127))
        rows.append([float(torch.tensor(scale)) * round(x / scale) for x in row])
    return torch.tensor(rows)


@pytest.fixture
def quantized(model_folder: Path) -> Policy:
    return adapted(load_policy(str(model_folder), "float32", "cpu", int8=True))


@pytest.fixture
def rounded(model_folder: Path, tmp_path: Path) -> Policy:
    """A plain model whose linear layers but the head hold the rounded weights."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        for name, module in model.named_modules():
            if type(module) is nn.Linear and name != "lm_head":
                module.weight.copy_(by_hand(module.weight))
    policy = load_policy(str(model_folder), "float32", "cpu")
    policy.model.load_state_dict(model.state_dict())
    return adapted(policy)


def test_a_row_is_divided_into_127_steps_of_its_largest_number() -> None:
    weight = torch.tensor([[1.27, -0.5, 0.004, 0.006], [0.0, 0.0, 0.0, 0.0], [-254.0, 127.0, 1.1, 0.9]])
    q, scale = quantize(weight)
    assert q.tolist() == [[127, -50, 0, 1], [0, 0, 0, 0], [-127, 64, 1, 0]]
    assert q.dtype == torch.int8
    assert scale.squeeze(1).tolist() == pytest.approx([0.01, 0.0, 2.0], abs=1e-9)
    assert dequantize(q, scale)[2].tolist() == [-254.0, 128.0, 2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_is_off_by_half_a_step_and_one_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(50, 300) * torch.logspace(-2, 1, 50)[:, None]).to(dtype)
    q, scale = quantize(weight)
    restored = dequantize(q, scale)
    assert restored.dtype == dtype
    bound = scale.double() / 2 + restored.double().abs() * torch.finfo(dtype).eps / 2
    assert bool(((restored.double() - weight.double()).abs() <= bound * (1 + 1e-6)).all())


def test_the_base_takes_a_byte_per_number(quantized: Policy) -> None:
    layers = [m for m in quantized.model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) == 7 * quantized.model.config.num_hidden_layers
    assert {m.quantized.element_size() for m in layers} == {1}
    assert not [n for n, _ in quantized.model.named_parameters() if "proj" in n]
    assert type(quantized.model.get_output_embeddings()) is nn.Linear
    assert quantized.llama is not None


@pytest.mark.parametrize("changes", [{}, {"micro_batch_tokens": 20}, {"activation_checkpointing": True}])
@pytest.mark.parametrize("native", [True, False])
def test_gradients_are_those_over_the_rounded_weights(
    quantized: Policy, rounded: Policy, changes: dict[str, Any], native: bool
) -> None:
    def gradients(policy: Policy, **changes: Any) -> tuple[float, dict[str, Tensor]]:
        updater = Updater(policy, UpdateConfig(**changes), temperature=0.7, seed=0)
        loss = updater.compute_gradient(make_groups(), make_weights()).loss
        return loss, {name: p.grad.clone() for name, p in updater.params.items() if p.grad is not None}

    if not native:
        quantized.llama = None
    expected_loss, expected = gradients(rounded)
    loss, ours = gradients(quantized, **changes)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert ours.keys() == expected.keys()
    assert max(float((ours[n] - g).norm() / g.norm()) for n, g in expected.items()) < 1e-5


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_engines_sample_from_the_rounded_weights(quantized: Policy, rounded: Policy, engine: str) -> None:
    prompts = [group.prompt for group in make_groups()]
    groups = make_engine(engine, quantized).generate(prompts, Sampling(2, 6, 6), seed=3)
    for prompt, completions in zip(prompts, groups, strict=True):
        for completion in completions:
            ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
            logprobs = torch.log_softmax(rounded.model(ids).logits[0, -7:-1], -1)
            expected = logprobs.gather(1, ids[0, -6:, None]).squeeze(1)
            assert torch.allclose(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-5)


def test_the_saved_model_is_plain_and_has_the_rounded_weights(
    quantized: Policy, rounded: Policy, tmp_path: Path
) -> None:
    save_policy(quantized, tmp_path / "merged", {})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {type(m) for n, m in merged.named_modules() if n.endswith("proj")} == {nn.Linear}
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        assert (merged(ids).logits - rounded.model(ids).logits).abs().max() < 1e-4
    written = sum(t.nbytes for t in merged.state_dict().values()) - merged.lm_head.weight.nbytes
    assert quantized.saved_bytes in (written, written + merged.lm_head.weight.nbytes)


def test_layers_that_are_not_adapted_have_the_rounded_weights_too(
    model_folder: Path, rounded: Policy, tmp_path: Path
) -> None:
    policy = adapted(load_policy(str(model_folder), "float32", "cpu", int8=True), targets=("q_proj",))
    save_policy(policy, tmp_path / "merged", {})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(merged[name], rounded.model.state_dict()[name])


def test_weights_that_are_not_finite_are_refused(model_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = torch.nan
    policy = load_policy(str(model_folder), "float32", "cpu")
    policy.model.load_state_dict(model.state_dict())
    save_policy(policy, tmp_path / "bad", {})
    with pytest.raises(UsageError, match=r"up_proj\.scale"):
        load_policy(str(tmp_path / "bad"), "float32", "cpu", int8=True)


def test_a_model_without_linear_layers_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(UsageError, match="8 bits"):
        quantize_linears(copy.deepcopy(model))
