"""Policies: which models are loaded, which are refused and why, and how they are saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from helpers.tiny import END, make_model, make_tokenizer
from reinforce_lite.errors import UsageError
from reinforce_lite.models.policy import Policy, load_policy, save_policy


def test_pickled_weights_are_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save(make_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickled") as caught:
        load_policy(str(folder))
    assert "--model.trust-remote-code" in caught.value.remedy
    assert load_policy(str(folder), trust_remote_code=True).model is not None


def test_remote_code_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    shutil.copytree(model_folder, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="own Python code") as caught:
        load_policy(str(folder))
    assert "--model.trust-remote-code" in caught.value.remedy
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["no-such-folder/model", "nowhere"])
def test_a_missing_model_is_reported_in_one_line(name: str) -> None:
    with pytest.raises(UsageError, match="can't load the model") as caught:
        load_policy(name)
    assert "\n" not in caught.value.cause


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't load the model"):
        load_policy(str(tmp_path))


def test_eos_token_ids_are_those_of_tokenizer_and_generation_config(
    model_folder: Path, tmp_path: Path
) -> None:
    """Chat models name several in their generation config."""
    folder = tmp_path / "eos"
    shutil.copytree(model_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert load_policy(str(folder)).eos_token_ids == {0, 7, END}


def test_master_weights_are_the_float32_weights_that_bfloat16_rounds(model_folder: Path) -> None:
    policy = load_policy(str(model_folder), dtype="bfloat16", device="cpu")
    original = dict(make_model().named_parameters())
    assert policy.dtype == torch.bfloat16
    assert policy.master_weights is not None
    assert all(torch.equal(weight, original[name]) for name, weight in policy.master_weights.items())
    assert load_policy(str(model_folder), "float32", "cpu").master_weights is None
    assert load_policy(str(model_folder), "bfloat16", "cpu", keep_float32=False).master_weights is None


def test_unsupported_models_run_through_transformers_alone(tmp_path: Path) -> None:
    """Nothing is fused, so their weights may be moved."""
    sizes = {"vocab_size": 259, "n_embd": 16, "n_layer": 2, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=END, bos_token_id=1)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), device="cpu")
    assert policy.llama is None
    policy.model.double()
    policy.check_fused()


def test_saving_replaces_the_folder_as_a_whole(policy: Policy, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("x")
    save_policy(policy, target, "card")
    assert not (target / "old").exists()
    assert (target / "README.md").read_text() == "card"
    reloaded = AutoModelForCausalLM.from_pretrained(target)
    pairs = zip(reloaded.parameters(), policy.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
