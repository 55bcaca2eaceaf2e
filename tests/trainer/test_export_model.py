"""The model of a checkpoint, written without training; and what a stopped or killed run offers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite import api, tasks
from reinforce_lite.config import load_config
from reinforce_lite.errors import FileError, UsageError
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import trained_config
from reinforce_lite.trainer.checkpoint import STATE
from reinforce_lite.trainer.export import export_model, keep_best


def train(settings: dict[str, Any], run: str = "a", **kwargs: Any) -> Run:
    return api.train(RECIPE, settings, task=ToyTask(), run=run, quiet=True, **kwargs)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == expected.keys() and all(torch.equal(ours[n], t) for n, t in expected.items())


@pytest.fixture
def killed(settings: dict[str, Any]) -> Run:
    """A run of ten steps that left its checkpoints of steps 8 and 10, and no more."""
    run = train(settings)
    (run.path / "model").rename(run.path / "expected")
    run.remove("summary.json")
    return run


def test_the_model_of_the_last_checkpoint_is_the_one_that_training_saves(
    killed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "load_task", lambda *_: pytest.fail("a task is loaded"))
    folder, step = export_model(killed)
    assert (folder, step) == (killed.path / "model", 10)
    assert same(weights(folder), weights(killed.path / "expected"))
    names = [{p.name: p.stat().st_mode for p in (killed.path / n).iterdir()} for n in ("model", "expected")]
    assert names[0] == names[1]
    card, expected = ((killed.path / n / "README.md").read_text() for n in ("model", "expected"))
    assert card == expected


def test_the_model_of_an_earlier_step(killed: Run, settings: dict[str, Any], in_tmp: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in killed.path.rglob("*")}
    folder, step = export_model(killed, 8, str(in_tmp / "somewhere" / "eight"))
    assert (folder, step) == (in_tmp / "somewhere" / "eight", 8)
    shorter = train(settings | {"train.steps": 8}, "b")
    assert same(weights(folder), weights(shorter.path / "model"))
    assert {p: p.stat().st_mtime_ns for p in killed.path.rglob("*")} == before


def test_other_dtypes(settings: dict[str, Any], in_tmp: Path) -> None:
    run = train(settings)
    expected = weights(run.path / "model")
    folder, _ = export_model(run, to="half", dtype="bfloat16")
    assert same(weights(folder), {name: w.bfloat16() for name, w in expected.items()})
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_float32_from_a_run_in_16_bits_is_as_fine_as_its_checkpoint(settings: dict[str, Any]) -> None:
    run = train(settings | {"model.dtype": "bfloat16", "train.steps": 2})
    rounded = weights(run.path / "model")
    assert {w.dtype for w in rounded.values()} == {torch.bfloat16}
    folder, _ = export_model(run, to="fine", dtype="float32")
    masters = load_file(run.path / "checkpoints" / "step-2" / STATE)
    fine = weights(folder)
    assert all(torch.equal(w, masters[f"weight/{name}"]) for name, w in fine.items())
    assert same({name: w.bfloat16() for name, w in fine.items()}, rounded)
    plain, _ = export_model(run, to="plain")
    assert same(weights(plain), rounded)


@pytest.mark.parametrize("base", ["full", "int8"])
def test_an_adapter_is_merged(settings: dict[str, Any], base: str) -> None:
    adapted = settings | {"adapter.rank": 2, "train.steps": 2, "rollout.engine": "native"}
    run = train(adapted | {"model.base_weights": "int8"} if base == "int8" else adapted)
    expected, matrices = (
        weights(run.path / "model"),
        load_file(run.path / "adapter" / "adapter_model.safetensors"),
    )
    shutil.rmtree(run.path / "model")
    shutil.rmtree(run.path / "adapter")
    folder, _ = export_model(run)
    assert same(weights(folder), expected)
    assert same(load_file(run.path / "adapter" / "adapter_model.safetensors"), matrices)
    tokenizers = [
        json.loads((run.path / n / "tokenizer_config.json").read_text()) for n in ("adapter", "model")
    ]
    assert tokenizers[0] == tokenizers[1]
    assert tokenizers[0]["tokenizer_class"] == "PreTrainedTokenizerFast"
    half, _ = export_model(run, to="half", dtype="bfloat16")
    assert same(weights(half), {name: w.bfloat16() for name, w in expected.items()})
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    assert not Path("adapter").exists()


def test_what_is_refused(killed: Run, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="step 4 of a has no checkpoint") as caught:
        export_model(killed, 4)
    assert "8, 10" in caught.value.remedy
    Path("filled").mkdir()
    Path("filled", "mine.txt").touch()
    Path("file").touch()
    for taken in ("filled", "file"):
        with pytest.raises(UsageError, match="not empty") as caught:
            export_model(killed, to=taken)
        assert "--to" in caught.value.remedy
    assert Path("filled", "mine.txt").exists()
    Path("empty").mkdir()
    assert export_model(killed, to="empty")[1] == 10
    shutil.rmtree(killed.path / "checkpoints")
    with pytest.raises(UsageError, match="no checkpoint to export") as caught:
        export_model(killed)
    assert "--resume" in caught.value.remedy


def test_the_current_folder_is_not_replaced(killed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is empty: a shell would then be in a folder that is gone."""
    run, here = Run(killed.path.absolute()), Path("here").absolute()
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    for to in (".", str(here)):
        with pytest.raises(UsageError, match="is the current folder"):
            export_model(run, to=to)
    assert here.stat().st_ino == inode
    assert export_model(run, to="new")[0] == here / "new"


def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(killed: Run) -> None:
    state = killed.path / "checkpoints" / "step-10" / STATE
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    with pytest.raises(UsageError, match="step-10 is damaged"):
        export_model(killed)
    assert state.read_bytes() == bytes(content)
    assert export_model(killed, 8)[1] == 8


def test_a_run_that_trains_is_exported_to_another_folder_alone(killed: Run) -> None:
    other = Run(killed.path)
    other.lock()
    with pytest.raises(UsageError, match="another process") as caught:
        export_model(killed)
    assert "--to" in caught.value.remedy
    assert export_model(killed, to="elsewhere")[1] == 10
    other.unlock()


def test_an_export_that_fails_leaves_nothing(killed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(FileError, match="No space left"):
        export_model(killed, to="new")
    assert not [p for p in Path().iterdir() if "new" in p.name]


def test_a_killed_run_names_the_command(killed: Run) -> None:
    with pytest.raises(UsageError, match="no trained model yet") as caught:
        trained_config("a")
    assert "export a; or resume it" in caught.value.remedy
    for folder in (killed.path / "checkpoints").iterdir():
        folder.rename(folder.with_name(f"{folder.name}.damaged"))
    with pytest.raises(UsageError, match="no trained model yet") as caught:
        trained_config("a")
    assert "export" not in caught.value.remedy


def test_a_model_outside_its_run_is_told_to_miss_its_prompt(
    killed: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """One inside its run has that prompt, and another program's folder has none."""
    export_model(killed, to="outside")
    export_model(killed, to=str(killed.path / "inside"))
    for name in (killed.config.model.name, str(killed.path / "inside")):
        trained_config(name)
    assert "outside its run" not in caplog.text
    prompt = trained_config("outside").prompt
    assert "outside is outside its run" in caplog.text
    assert prompt == load_config("quickstart").prompt != killed.config.prompt


def test_an_earlier_step_in_model_never_becomes_the_best(settings: dict[str, Any]) -> None:
    run = train(settings)
    run.write_json("summary", run.summary | {"best_step": 10})
    shutil.rmtree(run.path / "best", ignore_errors=True)
    keep_best(run, 10)
    assert same(weights(run.path / "best"), weights(run.path / "model"))
    for folder in ("best", "model"):
        shutil.rmtree(run.path / folder)
    export_model(run, 8)
    keep_best(run, 10)
    assert not (run.path / "best").exists()
