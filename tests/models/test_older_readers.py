"""The keys of transformers 4 in a saved folder; test_readers.py reads it with that version itself."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig

from helpers.model_configs import FAMILIES, make_family
from helpers.tiny import make_model, make_tokenizer
from reinforce_lite.models.older_readers import add_keys, add_tokenizer_keys
from reinforce_lite.models.policy import load_policy, save_policy


def read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def test_a_saved_model_has_the_keys_of_transformers_4(tmp_path: Path) -> None:
    make_model(rope_parameters={"rope_type": "default", "rope_theta": 100000.0}).save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<repo_name>"]})
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), "float32", "cpu")
    save_policy(policy, tmp_path / "model", {})
    config = read(tmp_path / "model" / "config.json")
    assert (config["rope_theta"], config["torch_dtype"]) == (100000.0, "float32")
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100000.0}
    assert "rope_scaling" not in config
    tokens = read(tmp_path / "model" / "tokenizer_config.json")
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokens["additional_special_tokens"] == ["<repo_name>"]
    assert "extra_special_tokens" not in tokens  # a list of which transformers 4 refuses
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(again) is type(tokenizer)
    assert again.extra_special_tokens == ["<repo_name>"]


@pytest.mark.parametrize(
    ("family", "former"),
    [
        ("llama-3", {"rope_theta": 500.0}),
        ("phi3-partial", {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}),
        (
            "phi3-long",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]}},
        ),
        (
            "gemma3",
            {
                "rope_theta": 500.0,
                "rope_local_base_freq": 50.0,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            },
        ),
    ],
)
def test_rotary_keys(tmp_path: Path, family: str, former: dict[str, Any]) -> None:
    model = make_family(family)
    model.config.save_pretrained(tmp_path)
    add_keys(tmp_path, type(model.config), {})
    config = read(tmp_path / "config.json")
    assert {key: config.get(key) for key in former} == former


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_5_reads_the_folder_as_before(tmp_path: Path, family: str) -> None:
    """And a model that is trained again from it has the same keys."""
    model, ids = make_family(family), torch.arange(3, 103)[None]
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    add_keys(tmp_path, type(model.config), {})
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    before = read(tmp_path / "config.json")
    again.config.save_pretrained(tmp_path)
    add_keys(tmp_path, type(model.config), {})
    after = read(tmp_path / "config.json")
    before["rope_parameters"].setdefault("type", after["rope_parameters"].get("type"))  # of Phi-3's scaling
    after["rope_parameters"].setdefault("type")
    assert after == before


def test_keys_that_transformers_5_would_read_as_another_embedding_are_left_out(tmp_path: Path) -> None:
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    GPTNeoXConfig(rope_parameters=scaled).save_pretrained(tmp_path)
    add_keys(tmp_path, GPTNeoXConfig, {})
    assert not {"rope_theta", "rope_scaling"} & read(tmp_path / "config.json").keys()
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 500.0


def test_keys_that_the_models_own_class_refuses_are_left_out(tmp_path: Path) -> None:
    """With an error that is none of Python's own, as huggingface_hub's for a value of another type."""

    def from_pretrained(folder: Path) -> Any:
        if "rope_theta" in read(folder / "config.json"):
            raise StrictDataclassError("rope_theta")

    GPTNeoXConfig(rope_parameters={"rope_type": "default", "rope_theta": 500.0}).save_pretrained(tmp_path)
    add_keys(tmp_path, SimpleNamespace(from_pretrained=from_pretrained), {})
    assert "rope_theta" not in read(tmp_path / "config.json")


def test_a_tokenizer_without_a_class_is_left_without(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"extra_special_tokens": ["<x>"]}')
    add_tokenizer_keys(tmp_path)
    assert read(tmp_path / "tokenizer_config.json") == {"additional_special_tokens": ["<x>"]}
