"""A run that trains an adapter, from its first step to the folders that it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.errors import UsageError
from reinforce_lite.models.policy import load_policy
from reinforce_lite.runlog.run import Run

ADAPTER = {"adapter.rank": 2, "adapter.alpha": 4, "rollout.engine": "native", "train.steps": 4}


def train(
    settings: dict[str, Any],
    run: str = "adapted",
    overrides: dict[str, Any] | None = None,
    resume: bool = False,
) -> Run:
    values = settings | ADAPTER | (overrides or {})
    return api.train(RECIPE, values, task=ToyTask(), run=run, resume=resume, quiet=True)


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_the_adapter_alone_is_trained(settings: dict[str, Any], engine: str) -> None:
    run = train(settings, overrides={"rollout.engine": engine})
    base = load_policy(settings["model.name"], "float32", "cpu").model
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(settings["model.name"]), run.path / "adapter"
    )
    merged = AutoModelForCausalLM.from_pretrained(run.path / "model")
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        before, with_adapter, after = (model(ids).logits for model in (base, adapted, merged))
    assert (after - with_adapter).abs().max() < 1e-4
    assert (after - before).abs().max() > 1e-3  # it learned something
    assert run.summary["adapter"]["rank"] == 2
    assert run.summary["adapter"]["merged_differences"] == 0
    assert 0 < run.summary["self_check"]["max_gap"] < 1e-4
    matrices = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert run.summary["adapter"]["parameters"] == sum(m.numel() for m in matrices.values())
    checkpoint = load_file(run.path / "checkpoints" / "step-4" / "state.safetensors")
    assert sum(t.numel() for name, t in checkpoint.items() if name.startswith("weight/")) == sum(
        m.numel() for m in matrices.values()
    )
    assert "rank 2" in (run.path / "model" / "README.md").read_text()


def test_a_resumed_run_equals_one_that_was_never_stopped(settings: dict[str, Any]) -> None:
    whole = train(settings, "whole")
    train(settings, "parts", {"train.steps": 2})
    parts = train(settings, "parts", resume=True)
    assert [s["grad_norm"] for s in parts.steps] == [s["grad_norm"] for s in whole.steps]
    ours, expected = (load_file(r.path / "adapter" / "adapter_model.safetensors") for r in (parts, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_a_run_can_start_from_an_adapter(settings: dict[str, Any]) -> None:
    first = train(settings)
    folder = str(first.path / "adapter")
    second = train(settings | {"model.name": folder}, "second", {"adapter.rank": 0})
    before = second.evals[0]
    assert before["split"] == "validation"
    after = [e for e in first.evals if e["split"] == "validation"][-1]
    assert [before[key] for key in ("strict", "mean_tokens")] == [
        after[key] for key in ("strict", "mean_tokens")
    ]
    saved = json.loads((second.path / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["base_model_name_or_path"]) == (2, settings["model.name"])
    with pytest.raises(UsageError, match="rank 2"):
        train(settings | {"model.name": folder}, "third", {"adapter.rank": 5})


def test_an_adapter_can_be_evaluated(settings: dict[str, Any]) -> None:
    run = train(settings)
    results = [
        api.evaluate(str(run.path / name), {"eval.n": 6}, task=ToyTask(), quiet=True)
        for name in ("adapter", "model")
    ]
    assert results[0].to_record()["strict"] == results[1].to_record()["strict"]


def test_an_optimizer_in_fewer_bits_is_refused(settings: dict[str, Any], in_tmp: Path) -> None:
    with pytest.raises(UsageError, match="32-bit"):
        train(settings, overrides={"update.optimizer_state": "8-bit"})
