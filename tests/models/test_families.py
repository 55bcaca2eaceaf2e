"""Model families from tiny random configs: checked against transformers, trained, saved and loaded again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.groups import make_groups, make_weights
from helpers.tiny import END, make_tokenizer
from reinforce_lite.config import UpdateConfig
from reinforce_lite.engines import make_engine
from reinforce_lite.errors import UsageError
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.policy import load_policy, save_policy
from reinforce_lite.planner.model_shape import read_shape
from reinforce_lite.trainer.self_check import compare_logprobs
from reinforce_lite.types import Prompt, Sampling

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": END,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "mistral": {"sliding_window": 6},
    "gemma": {},
    "gemma2": {"sliding_window": 6, "final_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 6},
    "gemma3_text within its window": {"sliding_window": 256},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 6},
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "gptj": {"rotary_dim": 8},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {"head_dim": None},
    "phi": {},
    "stablelm": {},
    "starcoder2": {},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5, "sliding_window": 6},
    "glm4": {},
    "smollm3": {},
    "ernie4_5": {},
    "exaone4": {"sliding_window": 6},
    "apertus": {},
    "nemotron": {},
    "qwen3_moe": MOE,
    "falcon_h1": {"lm_head_multiplier": 0.3, **MAMBA},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 6, "logits_soft_cap": 2.0},
}
PROMPTS = [Prompt(tuple(range(30, 44))), Prompt(tuple(range(30, 37)))]  # longer than the windows
SAMPLING = Sampling(samples=2, max_new_tokens=6, min_new_tokens=6)


def save_family(family: str, folder: Path) -> str:
    """A folder with a random model of the family."""
    torch.manual_seed(0)
    settings = SIZES | FAMILIES[family]
    config = AutoConfig.for_model(family.split()[0], **{k: v for k, v in settings.items() if v is not None})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_computed_trained_and_saved_exactly(family: str, tmp_path: Path) -> None:
    policy = load_policy(save_family(family, tmp_path / "base"), "float32", "cpu")
    updater = Updater(policy, UpdateConfig(learning_rate=1e-2), 1.0, 0)
    engine = make_engine("native", policy)

    prompts = PROMPTS[:1] if family == "recurrent_gemma" else PROMPTS  # its states take in padding
    untrained = compare_logprobs(policy, engine, updater.forward_pass, prompts, SAMPLING)
    assert untrained.max_gap < 2e-4
    ids = torch.tensor([list(PROMPTS[0].token_ids)])
    before = policy.model(ids, use_cache=False).logits
    assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
    trained = compare_logprobs(policy, engine, updater.forward_pass, prompts, SAMPLING)
    assert trained.max_gap < 2e-4

    after = policy.model(ids, use_cache=False).logits
    assert not torch.allclose(before, after, atol=1e-3)
    save_policy(policy, tmp_path / "trained", {})
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    torch.testing.assert_close(reloaded(ids, use_cache=False).logits, after, rtol=0, atol=1e-5)


def save_gemma3(folder: Path) -> Any:
    """A Gemma 3 of text and images, as those of 4B and up are; returns the model."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    images = {"boi_token_index": 250, "eoi_token_index": 251, "image_token_index": 252}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma3", text_config=SIZES, vision_config=vision, eos_token_id=END, **images
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


def test_the_language_model_of_a_model_that_reads_images_is_trained_and_saved(tmp_path: Path) -> None:
    whole = save_gemma3(tmp_path / "base")
    policy = load_policy(str(tmp_path / "base"), "float32", "cpu")
    ids = torch.tensor([list(PROMPTS[0].token_ids)])
    torch.testing.assert_close(policy.model(ids).logits, whole(ids).logits)

    updater = Updater(policy, UpdateConfig(learning_rate=1e-2), 1.0, 0)
    assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
    engine = make_engine("native", policy)
    assert compare_logprobs(policy, engine, updater.forward_pass, PROMPTS, SAMPLING).max_gap < 2e-4
    save_policy(policy, tmp_path / "trained", {})
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    torch.testing.assert_close(reloaded(ids).logits, policy.model(ids).logits)

    shape = read_shape(str(tmp_path / "base"), False, 64)
    assert shape.parameters == sum(p.numel() for p in reloaded.parameters())


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_recurrent_models_are_refused_by_plan_and_train(family: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        family, vocab_size=259, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, state_size=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no attention"):
        read_shape(str(tmp_path), False, 64)
    with pytest.raises(UsageError, match="no attention"):
        load_policy(str(tmp_path), "float32", "cpu")


def test_missing_weights_are_refused(model_folder: Path, tmp_path: Path) -> None:
    """transformers would load random numbers in their place with a warning alone."""
    folder = save_family("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UsageError, match=r"layers\.2"):
        load_policy(folder)
