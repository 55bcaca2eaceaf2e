"""The shape of a model from its config alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, Phi3Config, Phi3ForCausalLM

from helpers.model_configs import GEMMA_270M, LLAMA_3B, QWEN_3B, QWEN_3B_PARAMETERS, SMOLLM2, config_folder
from reinforce_lite.models.embedded import EMBEDDED_NAME, EMBEDDED_SHAPE, cache_folder
from reinforce_lite.planner.estimate import kv_bytes
from reinforce_lite.planner.model_shape import read_shape


@pytest.mark.parametrize(
    ("values", "parameters", "kv"),
    [
        (QWEN_3B, QWEN_3B_PARAMETERS, 36_864),
        (LLAMA_3B, 3_212_749_824, 114_688),
        (SMOLLM2, 134_515_008, 23_040),
    ],
)
def test_read_shape_counts_parameters_and_cache_from_a_config(
    tmp_path: Path, values: dict[str, Any], parameters: int, kv: int
) -> None:
    shape = read_shape(config_folder(tmp_path, values), False, 1024)
    assert shape.parameters == parameters
    assert kv_bytes(shape, torch.bfloat16) == kv
    assert shape.forward_pass == "tree"


def test_gemma_is_sized_as_ours_within_its_window_alone(tmp_path: Path) -> None:
    """262144 x 640 + 18 x 5,573,632 + 640 numbers, and a key and a value of 256 in 18 layers."""
    folder = config_folder(tmp_path, GEMMA_270M)
    shape = read_shape(folder, False, 512)
    assert shape.parameters == 268_098_176
    assert kv_bytes(shape, torch.bfloat16) == 18_432
    assert (shape.forward_pass, shape.qk_norm, shape.output_norms) == ("tree", True, 2)
    assert read_shape(folder, False, 513).forward_pass == "full_sequence"


TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


def test_read_shape_counts_other_families_as_built(tmp_path: Path) -> None:
    phi = Phi3ForCausalLM(Phi3Config(**TINY, num_key_value_heads=2))
    gemma = GemmaForCausalLM(GemmaConfig(**TINY, num_key_value_heads=1, head_dim=24))
    # Phi-3 does not tie: 2 x 300 x 32 + 3 x (32 x 64 + 32 x 32 + 3 x 32 x 48 + 2 x 32) + 32
    # Gemma does: 300 x 32 + 3 x (2 x 32 x 96 + 2 x 32 x 24 + 3 x 32 x 48 + 2 x 32) + 32
    for i, (model, parameters, kv_heads, head_size) in enumerate(
        [(phi, 42_464, 2, 8), (gemma, 46_688, 1, 24)]
    ):
        folder = tmp_path / str(i)
        model.config.save_pretrained(folder)
        shape = read_shape(str(folder), False, 64)
        assert shape.parameters == parameters == sum(p.numel() for p in model.parameters())
        assert shape.tensor_sizes == tuple(p.numel() for p in model.parameters())
        assert (shape.kv_heads, shape.head_size) == (kv_heads, head_size)
    assert shape.forward_pass == "shared_prompt"  # Gemma runs in transformers' modules


def test_embedded_shape_equals_the_config_of_its_folder() -> None:
    config_file = cache_folder() / EMBEDDED_NAME / "config.json"
    if not config_file.exists():
        pytest.skip("the embedded model is not in the cache")
    values = json.loads(config_file.read_text())
    assert {key: values[key] for key in EMBEDDED_SHAPE} == EMBEDDED_SHAPE
