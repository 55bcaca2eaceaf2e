"""A run that trains an adapter, from its first step to the folders that it leaves."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.config import AdapterConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.models.policy import load_policy
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import trained_config
from reinforce_lite.trainer.export import export_model

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


def test_an_adapter_does_not_continue_over_other_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(settings["model.name"], base)
    train(settings | {"model.name": str(base)}, overrides={"train.steps": 2})
    assert export_model(Run(Path("runs/adapted")), to=str(tmp_path / "before"))[1] == 2
    state = load_file(base / "model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"][0, 3] += 0.5  # one number
    save_file(state, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="base have changed since this adapter"):
        train(settings | {"model.name": str(base)}, resume=True)
    with pytest.raises(UsageError, match="base have changed since this adapter"):
        export_model(Run(Path("runs/adapted")), to=str(tmp_path / "after"))


def test_a_resume_in_another_dtype_says_so(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    train(settings, overrides={"train.steps": 2})
    machine = Path("runs/adapted/machine.json")
    machine.write_text(machine.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    train(settings, resume=True)
    assert "computed in bfloat16, and continues in float32: --model.dtype bfloat16" in caplog.text


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


def test_a_base_in_a_local_folder_is_found_from_any_folder(
    settings: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("base").symlink_to(settings["model.name"])
    folder = train(settings | {"model.name": "./base"}).path.absolute() / "adapter"
    (in_tmp / "elsewhere").mkdir()
    monkeypatch.chdir(in_tmp / "elsewhere")
    assert api.evaluate(str(folder), {"eval.n": 2}, task=ToyTask(), quiet=True).n == 2


def test_an_adapter_can_be_evaluated(settings: dict[str, Any]) -> None:
    run = train(settings)
    results = [
        api.evaluate(str(run.path / name), {"eval.n": 6}, task=ToyTask(), quiet=True)
        for name in ("adapter", "model")
    ]
    assert results[0].to_record()["strict"] == results[1].to_record()["strict"]


@pytest.mark.parametrize("start", ["model", "adapter"])
def test_state_in_fewer_bits_is_refused_wherever_the_adapter_comes_from(
    settings: dict[str, Any], start: str
) -> None:
    first = train(settings) if start == "adapter" else None
    name = str(first.path / "adapter") if first else settings["model.name"]
    rank = 0 if first else 2
    with pytest.raises(UsageError, match="32-bit") as caught:
        train(
            settings | {"model.name": name},
            "second",
            {"adapter.rank": rank, "update.optimizer_state": "8-bit"},
        )
    assert "--update.optimizer-state 32-bit" in caught.value.remedy


def test_a_target_that_the_model_lacks_is_refused_before_it_is_loaded(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="'nope'"):
        train(settings, overrides={"adapter.targets": ["nope"]})


def test_the_model_of_a_run_with_targets_can_be_used(settings: dict[str, Any]) -> None:
    """It is merged, so it has neither rank nor targets."""
    run = train(settings, overrides={"adapter.targets": ["q_proj"], "train.steps": 1})
    assert trained_config(run.path.name).adapter == AdapterConfig(alpha=4)


def test_comparing_the_merged_model_calls_no_reward(settings: dict[str, Any]) -> None:
    """A judge that is gone after training must not keep the run from ending."""

    class Counting(ToyTask):
        calls = 0

        def reward(self, problem: Any, completion: str) -> Any:
            Counting.calls += 1
            return super().reward(problem, completion)

    full = {"adapter.rank": 0, "train.steps": 1}
    counts = []
    for run, overrides in (("adapter", {"train.steps": 1}), ("full", full)):
        Counting.calls = 0
        api.train(RECIPE, settings | ADAPTER | overrides, task=Counting(), run=run, quiet=True)
        counts.append(Counting.calls)
    assert counts[0] == counts[1]


@pytest.mark.case(8)
def test_a_signal_while_the_merged_model_is_compared_leaves_a_finished_run(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("reinforce_lite.trainer.trainer.merge_adapter", interrupted)
    run = train(settings)
    assert run.summary["stopped"] == "steps"
    assert "adapter" not in run.summary


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no base"])
def test_a_folder_that_is_no_whole_adapter_is_refused(settings: dict[str, Any], damage: str) -> None:
    folder = train(settings).path / "adapter"
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if damage == "no weights":
        weights.rename(folder / "adapter_model.bin")
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(UsageError, match=r"adapter_(model.safetensors|config.json)"):
        train(settings | {"model.name": str(folder)}, "second", {"adapter.rank": 0})


def test_the_remedy_of_the_self_check_keeps_the_adapter(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reinforce_lite.trainer.self_check.BFLOAT16_BOUND", 1e-3)
    with pytest.raises(UsageError, match="log-probabilities") as caught:
        train(settings, overrides={"model.dtype": "bfloat16"})
    assert "--model.dtype float32" in caught.value.remedy


def test_a_base_in_8_bits(settings: dict[str, Any]) -> None:
    """The model that a run saves is the one it sampled from, and it can be evaluated like any other."""
    run = train(settings, overrides={"model.base_weights": "int8"})
    assert 0 < run.summary["self_check"]["max_gap"] < 1e-4
    assert run.summary["adapter"].keys() == {"rank", "parameters"}
    resumed = train(settings, overrides={"model.base_weights": "int8", "train.steps": 5}, resume=True)
    assert resumed.steps[-1]["step"] == 5
    last = [e for e in resumed.evals if e["split"] == "test"][-1]
    for name in ("adapter", "model"):
        result = api.evaluate(str(run.path / name), {"eval.n": 6}, task=ToyTask(), quiet=True)
        record = result.to_record()
        assert [record[k] for k in ("strict", "mean_tokens")] == [last[k] for k in ("strict", "mean_tokens")]
    plain = load_policy(settings["model.name"], "float32", "cpu").model.state_dict()
    merged = AutoModelForCausalLM.from_pretrained(run.path / "model").state_dict()
    assert merged.keys() == plain.keys()
    assert torch.equal(merged["model.norm.weight"], plain["model.norm.weight"])


def test_8_bits_without_an_adapter_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="nothing to train") as caught:
        train(settings, overrides={"model.base_weights": "int8", "adapter.rank": 0})
    assert "--adapter.rank" in caught.value.remedy


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_runs_over_one_base_equal_runs_that_load_their_own(settings: dict[str, Any], engine: str) -> None:
    values = settings | ADAPTER | {"rollout.engine": engine, "train.steps": 2}
    base = api.load_base(RECIPE, values)
    others = {"train.seed": 1, "adapter.rank": 3, "adapter.targets": ["q_proj", "down_proj"]}
    for i, changes in enumerate([{}, others, {}]):
        runs = [
            api.train(RECIPE, values | changes, task=ToyTask(), run=f"{name}-{i}", quiet=True, base=given)
            for name, given in (("shared", base), ("own", None))
        ]
        shared, own = (load_file(run.path / "adapter" / "adapter_model.safetensors") for run in runs)
        assert [s["grad_norm"] for s in runs[0].steps] == [s["grad_norm"] for s in runs[1].steps]
        assert shared.keys() == own.keys()
        assert all(torch.equal(shared[name], tensor) for name, tensor in own.items())
        models = [load_file(run.path / "model" / "model.safetensors") for run in runs]
        assert all(torch.equal(models[0][name], tensor) for name, tensor in models[1].items())


@pytest.mark.parametrize(
    "changes", [{"adapter.rank": 0}, {"model.dtype": "bfloat16"}, {"model.base_weights": "int8"}]
)
def test_a_base_is_shared_only_by_runs_of_the_same_model(
    settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    base = api.load_base(RECIPE, settings | ADAPTER)
    with pytest.raises(UsageError, match="can't share"):
        api.train(RECIPE, settings | ADAPTER | changes, task=ToyTask(), quiet=True, base=base)
