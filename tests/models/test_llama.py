"""Our forward pass against transformers' own, for every family that it says it knows."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from helpers.groups import make_groups, some_weights
from helpers.plain import BRANCHES, plain_of, relative_difference, tokens_of
from helpers.tiny import END, make_model
from reinforce_lite.config import UpdateConfig
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.learner.loss import backward_in_chunks
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.forward import TreeForward
from reinforce_lite.models.llama import Llama, max_exact_length, supports_model
from reinforce_lite.models.logprobs import token_logprobs
from reinforce_lite.models.policy import Policy, load_policy, save_policy
from reinforce_lite.types import Prompt, Sampling

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "pad_token_id": None,
    "eos_token_id": END,
}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rms_norm_eps=0.1)),
    "llama-biased": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, head_dim=8)),
    "llama-3": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA_3, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES)),
    "phi3-long": lambda: Phi3ForCausalLM(
        Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=64)
    ),
    "phi3-partial": lambda: Phi3ForCausalLM(
        Phi3Config(**(SIZES | {"hidden_size": 32}), partial_rotary_factor=0.5)
    ),
}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1],
    "long_factor": [2.0, 3.0],
}
LLAMA_3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def make(family: str) -> Any:
    """A model whose norms and biases are no ones and zeros, so that leaving one out shows."""
    torch.manual_seed(1)
    model = FAMILIES[family]().eval()
    for name, param in model.named_parameters():
        if param.dim() == 1:
            param.data = torch.rand_like(param) + (0.5 if "norm" in name else -0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_are_transformers(family: str) -> None:
    model, reference = make(family), make(family)
    assert supports_model(model)
    passes = TreeForward(Llama(model))
    tokens = tokens_of(BRANCHES)
    weights = torch.linspace(-1, 2, len(tokens), dtype=torch.float64)
    found = token_logprobs(model, passes.states(BRANCHES, None), tokens, 0.7)
    expected = plain_of(reference, BRANCHES, 0.7)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    backward_in_chunks(model, passes.states(BRANCHES, None), tokens, weights, 0.7)
    (-(weights * expected).sum()).backward()  # type: ignore[no-untyped-call]
    assert relative_difference(model, reference) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_transformers(family: str) -> None:
    model, reference = make(family), make(family)
    policy = Policy(model, _Numbers(), frozenset({END}), family, None)
    prompts = [(1, 40, 41, 42), (1, 40, 99), (1, 40, 41, 43, 44, 45, 46)]
    groups = NativeEngine(policy).generate([Prompt(p) for p in prompts], Sampling(1, 12, temperature=0.0), 0)
    for prompt, (answer,) in zip(prompts, groups, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and ids[-1] != END:
            ids.append(int(reference(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert answer.token_ids == tuple(ids[len(prompt) :])


class _Numbers:
    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(map(str, ids))


def test_what_it_does_not_know_it_leaves_alone() -> None:
    assert not supports_model(GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)))
    assert not supports_model(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)))
    assert not supports_model(LlamaForCausalLM(LlamaConfig(**SIZES, mlp_bias=True)))
    assert not supports_model(LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")))
    dynamic = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
    assert not supports_model(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=dynamic)))


def test_adapters_and_models_code_of_their_own_go_another_way() -> None:
    class Adapted(torch.nn.Linear):
        pass

    class Own(LlamaForCausalLM):  # type: ignore[misc]
        pass

    model = FAMILIES["llama"]()
    model.model.layers[0].self_attn.v_proj = Adapted(16, 8, bias=False)
    assert not supports_model(model)
    assert not supports_model(Own(LlamaConfig(**SIZES)))


def test_longrope_is_trusted_as_far_as_it_does_not_depend_on_the_batch() -> None:
    model = FAMILIES["phi3-long"]()
    assert supports_model(model)
    assert max_exact_length(model) == 64
    assert max_exact_length(FAMILIES["llama"]()) == math.inf


def fused(policy: Policy) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Every fused parameter by name, beside the rows of the fused buffer that should be its memory."""
    assert policy.llama is not None
    found = []
    names = {id(p): name for name, p in policy.model.named_parameters()}
    for layer in policy.llama.layers:
        for projection in (layer.qkv, layer.gate_up):
            rows = torch.split(projection.weight, [len(w) for w in projection.weights])
            found += [(names[id(w)], w, r) for w, r in zip(projection.weights, rows, strict=True)]
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_weights_stay_one_memory(model_folder: Path, tmp_path: Path, dtype: str) -> None:
    """Through an optimizer step, a save, and a state that is loaded."""
    policy = load_policy(str(model_folder), dtype, "cpu")

    def check() -> dict[str, torch.Tensor]:
        parts = fused(policy)
        assert len(parts) == 2 * 5  # q, k, v, gate, up in two layers
        for name, param, rows in parts:
            assert param.data_ptr() == rows.data_ptr(), name
            assert param.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr(), name
            assert torch.equal(param, rows), name
        return {name: param.detach().clone() for name, param, _ in parts}

    before = check()
    updater = Updater(policy, UpdateConfig(learning_rate=0.1), 0.7)
    original = {name: t.clone() for name, t in updater.state_dict().items()}
    assert updater.apply_gradient(updater.compute_gradient(make_groups(), some_weights()), 1)
    after = check()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    save_policy(policy, tmp_path / "model", "card")
    assert torch.equal(check()[next(iter(after))], after[next(iter(after))])
    again = load_policy(str(tmp_path / "model"), dtype, "cpu")
    for name, param, _ in fused(again):
        assert torch.equal(param, after[name])
    updater.load_state_dict(original)
    assert all(torch.equal(param, before[name]) for name, param in check().items())


def test_moved_weights_are_noticed(policy: Policy) -> None:
    """Otherwise the sampler would go on with the old ones."""
    assert policy.llama is not None
    policy.model.model.layers[1].mlp.up_proj.double()
    with pytest.raises(RuntimeError, match="moved"):
        _ = policy.llama


def test_replaced_weights_are_noticed(policy: Policy) -> None:
    assert policy.llama is not None
    policy.model.load_state_dict({k: v.clone() for k, v in policy.model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match="moved"):
        _ = policy.llama


def test_an_update_is_seen_by_the_sampler_at_once(policy: Policy) -> None:
    engine = NativeEngine(policy)
    greedy = Sampling(1, max_new_tokens=6, temperature=0.0)
    before = engine.generate([Prompt((1, 40, 41))], greedy, 0)
    updater = Updater(policy, UpdateConfig(learning_rate=0.3), 0.7)
    updater.apply_gradient(updater.compute_gradient(make_groups(), some_weights()), 1)
    after = engine.generate([Prompt((1, 40, 41))], greedy, 0)
    reference = make_model()
    reference.load_state_dict(policy.model.state_dict())
    first = int(reference(torch.tensor([[1, 40, 41]])).logits[0, -1].argmax())
    assert after[0][0].token_ids[0] == first
    assert after != before
