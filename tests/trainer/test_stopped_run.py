"""The model of a run that a signal stopped, and what ask, eval, doctor and best/ make of it."""

import json
import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.api import ask_model, resolve_config
from reinforce_lite.callbacks.base import SAVING_MODEL, UPDATING, Callback
from reinforce_lite.cli.args import EvalArgs
from reinforce_lite.cli.eval_table import describe_measured
from reinforce_lite.errors import FileError, StoppedError
from reinforce_lite.models.policy import Policy, save_policy
from reinforce_lite.runlog.diagnosis import diagnose
from reinforce_lite.runlog.json_files import STEP_KEY
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import open_run
from reinforce_lite.runlog.summary import best_step
from reinforce_lite.trainer import export, session
from reinforce_lite.trainer import trainer as trainer_module

pytestmark = pytest.mark.case(8)


class StopsAt(Callback):
    """Sends this process a signal in the nth phase of a name."""

    def __init__(self, name: str, nth: int = 1) -> None:
        self.name, self.left = name, nth

    def phase(self, name: str, total: int = 0) -> None:
        self.left -= name == self.name
        if self.left == 0 and name == self.name:
            signal.raise_signal(signal.SIGTERM)


def stop(settings: dict[str, Any], nth: int, run: str = "cut") -> Run:
    """Start or resume a run, and stop it in its nth update: after the step before."""
    opened = open_run(run, resume=True)
    resolved = resolve_config(RECIPE, settings, ToyTask())
    with pytest.raises(StoppedError) as caught:
        session.train(resolved, opened, ToyTask(), StopsAt(UPDATING, nth))
    assert caught.value.exit_code == 143
    return opened


def rewrite(run: Run, log: str, **values: Any) -> None:
    """Change every line of a log."""
    lines = [json.dumps(line | values) + "\n" for line in run.read(log)]
    (run.path / f"{log}.jsonl").write_text("".join(lines))


def test_a_resume_counts_the_time_and_the_memory_of_sessions_before(settings: dict[str, Any]) -> None:
    """The first one saves no checkpoint, which would know its time."""
    run = stop(settings, 1)
    rewrite(run, "evals", seconds=100.0)
    stop(settings, 3)
    rewrite(run, "steps", **{"memory/peak_bytes": 10**15})
    summary = api.train(RECIPE, settings, task=ToyTask(), run="cut", resume=True, quiet=True).summary
    assert 200 <= summary["seconds"] < 300
    assert summary["peak_memory_bytes"] == summary["memory"]["peak_bytes"] == 10**15
    assert run.steps[-1]["memory/peak_bytes"] == 10**15


def saved_step(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())[STEP_KEY])


def test_ask_eval_and_doctor_tell_the_step_of_a_stopped_run(settings: dict[str, Any]) -> None:
    run = stop(settings, 3)
    assert [entry["model"] for entry in ask_model("cut", "2+2?")] == [
        "untrained",
        "step 2 of 10, unfinished",
    ]
    card = (run.path / "model" / "README.md").read_text()
    assert "- **Steps:** 2 of 10, unfinished, seed" in card
    assert "Not measured at this step." in card
    evaluation = api.evaluate("cut", {"eval.n": 2}, task=ToyTask(), quiet=True)
    measured = describe_measured(EvalArgs(target="cut"), run.config, evaluation, [])
    assert "measured" in measured
    assert run.model_progress == "step 2 of 10, unfinished"
    assert "The model of step 2 of 10, unfinished, is in runs/cut/model" in diagnose(run).next
    run = api.train(RECIPE, settings, task=ToyTask(), run="cut", resume=True, quiet=True)
    assert [entry["model"] for entry in ask_model("cut", "2+2?")] == ["untrained", "trained"]
    assert "runs/cut/model" in diagnose(run).next
    assert run.model_step == 10
    card = (run.path / "model" / "README.md").read_text()
    assert "- **Steps:** 10, seed" in card
    assert "Not measured" not in card


def test_a_large_model_is_left_to_the_export_command(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer_module, "QUICK_SAVE_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING):
        run = stop(settings, 3)
    assert not (run.path / "model").exists()
    assert "to write the model of step 2: " in caplog.text
    assert "export cut" in caplog.text
    assert "export cut" in diagnose(run).next


@pytest.mark.case(2)
def test_a_stop_without_room_for_the_model_is_still_a_stop(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The older model stays, and is told apart from that of the last step."""
    api.train(RECIPE, settings | {"train.steps": 3}, task=ToyTask(), run="cut", quiet=True)

    def full(policy: Policy, folder: Path, *args: Any, **options: Any) -> None:
        if folder.name == "model":
            raise FileError("can't write it: No space left on device")
        save_policy(policy, folder, *args, **options)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(export, "save_policy", full)
        run = stop(settings, 2)
    assert "no model was written: FileError: can't write it: No space left" in caplog.text
    assert "export cut --to runs/cut/exported" in caplog.text
    assert (run.summary["steps"], run.model_progress) == (4, "step 3 of 10, unfinished")
    assert export.export_model(run, to="runs/cut/exported")[1] == 4


def test_a_second_signal_while_the_model_is_saved_ends_the_process(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint and summary are saved before."""

    class Left(BaseException):
        pass

    class Twice(StopsAt):
        def phase(self, name: str, total: int = 0) -> None:
            super().phase(name, total)
            if name == SAVING_MODEL:
                signal.raise_signal(signal.SIGTERM)

    def leave(status: int) -> None:
        raise Left(status)

    monkeypatch.setattr("os._exit", leave)
    run = open_run("cut", resume=True)
    with pytest.raises(Left, match="143"):
        session.train(resolve_config(RECIPE, settings, ToyTask()), run, ToyTask(), Twice(UPDATING, 3))
    assert (run.summary["stopped"], run.summary["steps"]) == ("signal", 2)
    assert export.export_model(run)[1] == 2


def test_the_best_model_is_kept_through_stops(settings: dict[str, Any]) -> None:
    """best/ is that of the best validation, whichever step model/ is of."""
    straight = api.train(RECIPE, settings, task=ToyTask(), run="straight", quiet=True)
    for nth, step in ((3, 2), (2, 3), (5, 7), (3, 9)):  # validations are at steps 3, 6 and 9
        run = stop(settings, nth)
        assert run.model_step == step
        best = best_step(run.evals)
        assert (saved_step(run.path / "best") if (run.path / "best").exists() else 0) == best
    cut = api.train(RECIPE, settings, task=ToyTask(), run="cut", resume=True, quiet=True)
    assert best_step(cut.evals) == cut.summary["best_step"] == straight.summary["best_step"]
    assert (cut.path / "best").is_dir() == (straight.path / "best").is_dir()
    weights = [run.path / "model" / "model.safetensors" for run in (cut, straight)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_best_model_of_a_step_that_was_lost_goes(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Killed after a validation, before its checkpoint, and resumed for fewer steps."""
    run = api.train(RECIPE, settings, task=ToyTask(), run="lost", quiet=True)
    best = run.path / "best"
    shutil.copytree(run.path / "model", best, dirs_exist_ok=True)
    step = saved_step(best)
    run.rewind(step)
    assert best.is_dir()
    assert "taken again" not in caplog.text
    run.rewind(step - 1)
    assert not best.exists()
    assert f"is of step {step}, which is taken again" in caplog.text
    best.mkdir()
    (best / "config.json").write_text("{")
    run.rewind(step)
    assert not best.exists()  # of what step it was can't be told
