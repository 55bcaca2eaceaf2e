"""Our forward pass against transformers' own, for every family that it supports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from helpers.groups import make_groups, make_weights
from helpers.model_configs import FAMILIES, GEMMA3, SIZES, make_family
from helpers.plain import BRANCHES, completion_tokens, gradient_difference, reference_logprobs
from helpers.tiny import END, make_model, make_tokenizer
from reinforce_lite.config import UpdateConfig
from reinforce_lite.engines import make_engine
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.learner.loss import backward_in_chunks
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.forward import TreeForward
from reinforce_lite.models.llama import Llama, supports_model
from reinforce_lite.models.logprobs import token_logprobs
from reinforce_lite.models.policy import Policy, load_policy, save_policy
from reinforce_lite.types import Prompt, Sampling


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_gradients_match_transformers(family: str) -> None:
    model, reference = make_family(family), make_family(family)
    assert supports_model(model, 64)
    forward = TreeForward(Llama(model))
    tokens = completion_tokens(BRANCHES)
    weights = torch.linspace(-1, 2, len(tokens), dtype=torch.float64)
    logprobs = token_logprobs(model, forward.states(BRANCHES, None), tokens, 0.7)
    expected = reference_logprobs(reference, BRANCHES, 0.7)
    assert logprobs.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    backward_in_chunks(model, forward.states(BRANCHES, None), tokens, weights, 0.7)
    torch.autograd.backward(-(weights * expected).sum())
    assert gradient_difference(model, reference) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_completions_match_transformers(family: str) -> None:
    model, reference = make_family(family), make_family(family)
    policy = Policy(model, NumberTokenizer(), frozenset({END}), family, llama=Llama(model))
    prompts = [(1, 40, 41, 42), (1, 40, 99), (1, 40, 41, 43, 44, 45, 46)]
    greedy = Sampling(1, max_new_tokens=12, temperature=0.0)
    groups = NativeEngine(policy).generate([Prompt(p) for p in prompts], greedy, 0)
    for prompt, (completion,) in zip(prompts, groups, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and ids[-1] != END:
            ids.append(int(reference(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert completion.token_ids == tuple(ids[len(prompt) :])


class NumberTokenizer:
    """Decodes token ids to their numbers; texts have no tokens."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": []}

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(map(str, ids))


def test_other_architectures_are_not_supported() -> None:
    assert not supports_model(GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)))
    assert not supports_model(LlamaForCausalLM(LlamaConfig(**SIZES, mlp_bias=True)))
    assert not supports_model(LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")))
    both_ways = Gemma3TextConfig(**SIZES, **(GEMMA3 | {"use_bidirectional_attention": True}))
    assert not supports_model(Gemma3ForCausalLM(both_ways), 8)
    dynamic = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
    assert not supports_model(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=dynamic)))


def test_adapters_and_custom_code_are_not_supported() -> None:
    class AdaptedLinear(torch.nn.Linear):
        pass

    class CustomModel(LlamaForCausalLM):  # type: ignore[misc]
        pass

    model = FAMILIES["llama"]()
    model.model.layers[0].self_attn.v_proj = AdaptedLinear(16, 8, bias=False)
    assert not supports_model(model)
    assert not supports_model(CustomModel(LlamaConfig(**SIZES)))


def test_a_sliding_window_is_supported_up_to_its_size() -> None:
    """A token attends to as many tokens as the window has, itself included. By default a sequence may have as
    many as the context."""
    mistral, gemma = (
        MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)).eval(),
        make_family("gemma3"),
    )
    assert supports_model(mistral, 8)
    assert not supports_model(mistral, 9)
    assert not supports_model(mistral)
    assert supports_model(gemma, 64)
    assert not supports_model(gemma, 65)
    ids = torch.arange(30, 39)[None]
    logits = mistral(ids).logits
    wide = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)).eval()
    wide.load_state_dict(mistral.state_dict())
    gaps = (wide(ids).logits - logits).abs().amax(-1)[0]
    assert gaps[:8].max() < 1e-5
    assert gaps[8] > 1e-2


def test_the_engine_names_the_window_that_sequences_exceed(caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy(make_family("gemma3"), make_tokenizer(), frozenset({END}), "gemma3")
    make_engine("native", policy)
    assert "more than 64 tokens together" in caplog.text


def test_longrope_is_supported_up_to_its_original_context(tmp_path: Path) -> None:
    """Beyond it, the rotary embedding depends on the batch; the policy then has transformers' modules alone."""
    model = FAMILIES["phi3-long"]()
    assert supports_model(model, 64)
    assert not supports_model(model, 65)
    assert supports_model(FAMILIES["llama"](), 10**9)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert load_policy(str(tmp_path), device="cpu", max_length=64).llama is not None
    assert load_policy(str(tmp_path), device="cpu", max_length=65).llama is None


def fused_parameters(policy: Policy) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Each fused parameter: its name, itself, and its part of the fused weight, which should be its memory."""
    assert policy.llama is not None
    names = {id(p): name for name, p in policy.model.named_parameters()}
    return [
        (names[id(param)], param, view)
        for layer in policy.llama.layers
        for projection in (layer.qkv, layer.gate_up)
        for param, view in zip(
            projection.weights,
            torch.split(projection.weight, [len(w) for w in projection.weights]),
            strict=True,
        )
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_weights_share_memory_with_parameters(model_folder: Path, tmp_path: Path, dtype: str) -> None:
    """Through an optimizer step, a save, and a loaded state."""
    policy = load_policy(str(model_folder), dtype, "cpu")

    def check() -> dict[str, torch.Tensor]:
        fused = fused_parameters(policy)
        assert len(fused) == 2 * len(("q", "k", "v", "gate", "up"))  # in two layers
        for name, param, view in fused:
            assert param.data_ptr() == view.data_ptr(), name
            assert param.untyped_storage().data_ptr() == view.untyped_storage().data_ptr(), name
            assert torch.equal(param, view), name
        return {name: param.detach().clone() for name, param, _ in fused}

    before = check()
    updater = Updater(policy, UpdateConfig(learning_rate=0.1), 0.7, 0)
    state = {name: t.clone() for name, t in updater.state_dict().items()}
    assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
    after = check()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    save_policy(policy, tmp_path / "model", {})
    first = next(iter(after))
    assert torch.equal(check()[first], after[first])
    reloaded = load_policy(str(tmp_path / "model"), dtype, "cpu")
    for name, param, _ in fused_parameters(reloaded):
        assert torch.equal(param, after[name])
    updater.load_state_dict(state)
    assert all(torch.equal(param, before[name]) for name, param in check().items())


def move_weights(policy: Policy) -> None:
    policy.model.model.layers[1].mlp.up_proj.double()


def replace_weights(policy: Policy) -> None:
    policy.model.load_state_dict({k: v.clone() for k, v in policy.model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [move_weights, replace_weights])
def test_moved_weights_are_noticed_by_engine_and_updater(
    policy: Policy, change: Callable[[Policy], None]
) -> None:
    """Otherwise the engine would sample from the old weights."""
    assert policy.llama is not None
    policy.llama.check_fused()
    engine = NativeEngine(policy)
    change(policy)
    with pytest.raises(RuntimeError, match="moved"):
        policy.llama.check_fused()
    with pytest.raises(RuntimeError, match="moved"):
        engine.generate([Prompt((1, 40, 41))], Sampling(1, max_new_tokens=2), 0)
    with pytest.raises(RuntimeError, match="moved"):
        Updater(policy, UpdateConfig(), 0.7, 0)


def test_the_engine_samples_from_updated_weights(policy: Policy) -> None:
    engine = NativeEngine(policy)
    greedy = Sampling(1, max_new_tokens=6, temperature=0.0)
    before = engine.generate([Prompt((1, 40, 41))], greedy, 0)
    updater = Updater(policy, UpdateConfig(learning_rate=0.3), 0.7, 0)
    updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
    after = engine.generate([Prompt((1, 40, 41))], greedy, 0)
    reference = make_model()
    reference.load_state_dict(policy.model.state_dict())
    first = int(reference(torch.tensor([[1, 40, 41]])).logits[0, -1].argmax())
    assert after[0][0].token_ids[0] == first
    assert after != before
