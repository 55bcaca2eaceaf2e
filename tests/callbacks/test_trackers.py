"""What trackers get, with fakes in place of theirs; TensorBoard for real where it is installed."""

import errno
import io
import logging
import os
import re
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from rich.console import Console

from helpers import run_files
from helpers.faults import Write, watching
from helpers.paths import RECIPE, ROOT
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks import trackers
from reinforce_lite.callbacks.console import LineConsole
from reinforce_lite.cli import app as cli
from reinforce_lite.config import TrackerName
from reinforce_lite.errors import DoesNotFitError, FileError, StoppedError, UsageError
from reinforce_lite.learner.updater import Updater
from reinforce_lite.runlog import run as runlog
from reinforce_lite.runlog.runs import create_run
from reinforce_lite.trainer import session
from reinforce_lite.trainer.checkpoint import checkpoint_steps

SMALL = {"train.steps": 3, "train.save_every": 1, "eval.every": 2}


class Fake(ModuleType):
    """Stands for wandb and trackio: keeps what it is sent, and talks on standard output as they do."""

    def __init__(self, name: str, fails_at: int = 0) -> None:
        super().__init__(name)
        self.fails_at = fails_at
        self.started: list[dict[str, Any]] = []
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.calls = 0
        self.finished = 0
        self.exit_code = 0
        self.saved: list[int] = []
        """The checkpoints that were there when it was told to end."""

    def init(self, *names: str, **settings: Any) -> "Fake":
        print("* a tracker's greeting")
        self.started.append(settings | ({"project": names[0]} if names else {}))
        return self

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802 wandb.Settings
        return settings

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise ConnectionError("the server said no to sk-verysecret1")
        self.sent.append((step, numbers))

    def finish(self, exit_code: int = 0) -> None:
        self.finished += 1
        self.exit_code = exit_code
        self.saved = checkpoint_steps(Path("runs/a/checkpoints"))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    made = {name: Fake(name) for name in ("wandb", "trackio")}
    for name, fake in made.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return made


@pytest.fixture
def settings(model_folder: Path, in_tmp: Path) -> dict[str, Any]:
    return SMALL | {"model.name": str(model_folder), "log.trackers": ["wandb", "trackio"]}


def train(settings: dict[str, Any], name: str = "a", **kwargs: Any) -> runlog.Run:
    return api.train(RECIPE, settings, task=ToyTask(), run=name, quiet=True, **kwargs)


@pytest.mark.case(26)
def test_the_lines_are_sent_under_their_own_names(settings: dict[str, Any], fakes: dict[str, Fake]) -> None:
    run = train(settings)
    for fake in fakes.values():
        steps = [(step, sent) for step, sent in fake.sent if "loss" in sent]
        assert [step for step, _ in steps] == [1, 2, 3]
        for (_, sent), line in zip(steps, run.steps, strict=True):
            expected = {k: float(v) for k, v in line.items() if k != "step" and v is not None}
            assert sent == expected
            assert "reflection/list_a" in sent
            assert "accuracy/second_opinion" in sent
        evals = [(step, sent) for step, sent in fake.sent if "loss" not in sent]
        assert [(step, next(iter(sent)).split("/")[1]) for step, sent in evals] == [
            (e["step"], e["split"]) for e in run.evals
        ]
        last = run.evals[-1]
        assert evals[-1][1]["eval/test/strict"] == last["strict"]
        assert evals[-1][1]["eval/test/reflection/list_c"] == last["reflection/list_c"]
        assert fake.finished == 1
        assert all(isinstance(value, float) for _, sent in fake.sent for value in sent.values())


def test_they_are_told_what_the_run_is(settings: dict[str, Any], fakes: dict[str, Fake]) -> None:
    train(settings)
    wandb, trackio = fakes["wandb"].started[0], fakes["trackio"].started[0]
    assert wandb["project"] == trackio["project"] == "reinforce-lite"
    assert wandb["name"] == "a"
    assert wandb["id"] == trackio["name"]
    assert wandb["id"].startswith("a-")
    assert wandb["resume"] == trackio["resume"] == "allow"
    assert wandb["settings"] == {"console": "off"}
    assert Path(wandb["dir"]) == Path("runs/a")
    assert wandb["config"] == trackio["config"]
    assert wandb["config"]["train"]["steps"] == 3


def test_a_resumed_run_goes_on_and_another_of_its_name_does_not(
    settings: dict[str, Any], fakes: dict[str, Fake], in_tmp: Path
) -> None:
    train(settings)
    train(settings | {"train.steps": 4}, resume=True)
    (in_tmp / "runs" / "a").rename(in_tmp / "moved")
    train(settings)
    first, again, other = (settings["id"] for settings in fakes["wandb"].started)
    assert first == again != other


def test_nothing_is_sent_when_none_is_named(settings: dict[str, Any], fakes: dict[str, Fake]) -> None:
    train(settings | {"log.trackers": []})
    assert all(fake.started == [] and fake.sent == [] for fake in fakes.values())
    assert not (Path("runs/a") / "tracker_mark").exists()


def test_trackers_may_change_on_resume(settings: dict[str, Any], fakes: dict[str, Fake]) -> None:
    train(settings | {"log.trackers": []})
    train(settings | {"train.steps": 4, "log.trackers": ["wandb"]}, resume=True)
    assert [step for step, sent in fakes["wandb"].sent if "loss" in sent] == [4]


@pytest.mark.case(28)
def test_one_that_fails_is_left_out_with_one_note(
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fakes: dict[str, Fake],
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-verysecret1")
    fakes["wandb"].fails_at = 4
    with caplog.at_level(logging.WARNING):
        run = train(settings)
    assert len(run.steps) == 3
    assert run.summary["stopped"] == "steps"
    assert (len(fakes["wandb"].sent), fakes["wandb"].calls, fakes["wandb"].finished) == (3, 4, 0)
    assert len(fakes["trackio"].sent) == 3 + len(run.evals)
    notes = [r.message for r in caplog.records if "tracker" in r.message]
    assert notes == [
        "the tracker wandb failed and receives nothing more: ConnectionError: the server said no to "
        "[SOME_API_KEY]"
    ]


def test_one_that_does_not_start_ends_the_command_before_any_work(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fakes: dict[str, Fake]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("not\nlogged in")

    monkeypatch.setattr(fakes["trackio"], "init", refuse)
    with pytest.raises(UsageError) as caught:
        train(settings)
    assert caught.value.cause == "the tracker trackio did not start: PermissionError: not logged in"
    assert caught.value.remedy.endswith("log.trackers; then repeat the command")
    assert (fakes["wandb"].finished, fakes["wandb"].exit_code) == (1, 1)
    assert not list(Path("runs/a").glob("*.json*"))
    run = train(settings | {"log.trackers": ["wandb"]})
    assert len(run.steps) == 3
    with pytest.raises(UsageError) as caught:
        train(settings | {"train.steps": 4}, resume=True)
    assert caught.value.remedy.endswith("train --run a --resume")


def after_two_steps(monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    """Have something happen in the third step's update."""
    gradient = Updater.compute_gradient

    def third(self: Updater, groups: Any, weights: Any) -> Any:
        if len(runlog.Run(Path("runs/a")).steps) == 2:
            happens()
        return gradient(self, groups, weights)

    monkeypatch.setattr(Updater, "compute_gradient", third)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, 0])
def test_all_is_saved_before_trackers_end(
    signum: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fakes: dict[str, Fake]
) -> None:
    """After a signal, or where memory runs out (0): a network that does not answer costs no step."""

    def full() -> None:
        raise DoesNotFitError("full")

    after_two_steps(monkeypatch, (lambda: os.kill(os.getpid(), signum)) if signum else full)
    with pytest.raises(StoppedError if signum else DoesNotFitError):
        train(settings | {"train.save_every": 100})
    for fake in fakes.values():
        assert (fake.finished, fake.saved) == (1, [2])
    assert fakes["wandb"].exit_code == 1


def test_a_run_that_is_done_ends_as_done(settings: dict[str, Any], fakes: dict[str, Fake]) -> None:
    fakes["wandb"].exit_code = 9
    train(settings)
    assert fakes["wandb"].exit_code == 0


def test_a_signal_while_they_start_begins_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fakes: dict[str, Fake]
) -> None:
    monkeypatch.setattr(fakes["trackio"], "init", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError, match="before the run was started") as caught:
        train(settings)
    assert caught.value.remedy == "repeat the command"
    assert not list(Path("runs/a").glob("*.json"))
    assert not list(Path("runs/a").glob("*.html"))


def test_a_signal_while_they_end_leaves_a_run_that_is_done(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fakes: dict[str, Fake]
) -> None:
    monkeypatch.setattr(fakes["trackio"], "finish", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(settings).summary["stopped"] == "steps"


def test_a_mark_that_can_not_be_written_is_no_fault_of_the_tracker(
    settings: dict[str, Any], fakes: dict[str, Fake]
) -> None:
    def full(write: Write) -> None:
        if "tracker_mark" in write.path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with watching(Path("runs/a"), full), pytest.raises(FileError, match="tracker_mark: No space left"):
        train(settings)


@pytest.mark.parametrize("done", [0, 2])
def test_tensorboard_hides_what_comes_again(done: int, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    theirs = ModuleType("torch.utils.tensorboard")
    theirs.SummaryWriter = lambda *_, **settings: asked.append(settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", theirs)
    run = create_run("a")
    run.append("steps", *(run_files.step(n) for n in range(1, done + 1)))
    trackers.TensorBoard(run, {})
    assert asked == [{"purge_step": done + 1}]


@pytest.mark.parametrize("name", ["trackio", "wandb", "tensorboard"])
def test_a_missing_extra_is_one_line_and_status_2(
    name: str,
    model_folder: Path,
    in_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    status = cli.main(["train", "--model.name", "no/such/model", "--log.trackers", name])
    assert status == 2
    assert capsys.readouterr().err.splitlines() == [
        f"reinforce-lite: the tracker {name} needs an optional dependency that is not installed",
        f'  install it with: pip install "reinforce-lite[{name}]"',
    ]
    assert not list(in_tmp.glob("runs/*"))


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UsageError, match=r"log\.trackers"):
        resolve_config(RECIPE, {"log.trackers": ["mlflow"]}, None)


def test_standard_output_stays_json(
    settings: dict[str, Any], fakes: dict[str, Fake], capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = resolve_config(RECIPE, settings, ToyTask())
    session.train(resolved, create_run("a"), ToyTask())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("a tracker's greeting") == 2


def test_the_screen_hears_everything_as_without_trackers(
    settings: dict[str, Any], fakes: dict[str, Fake]
) -> None:
    texts = []
    for name, names in (("a", []), ("b", ["wandb"])):
        out = io.StringIO()
        show = LineConsole(Console(file=out, width=200))
        resolved = resolve_config(RECIPE, settings | {"log.trackers": names}, ToyTask())
        session.train(resolved, create_run(name), ToyTask(), show)
        lines = re.sub(r"(runs/|ask |eval |--run )b", r"\1a", out.getvalue()).splitlines()
        texts.append([line.split(" s ")[0].rsplit("  ", 1)[0] for line in lines if "took" not in line])
    assert texts[0] == texts[1]


def test_trackers_are_those_that_the_config_names() -> None:
    assert set(trackers.TRACKERS) == set(get_args(TrackerName))


def test_every_tracker_has_its_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name in trackers.TRACKERS:
        assert f'\n{name} = ["{name}>=' in text


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra tensorboard is not installed")
def test_tensorboard_reads_back_what_was_sent(settings: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(settings | {"log.trackers": ["tensorboard"]})
    run = train(settings | {"log.trackers": ["tensorboard"], "train.steps": 4}, resume=True)
    found = EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    rewards = [(e.step, e.value) for e in found.Scalars("reward")]
    assert rewards == [(line["step"], pytest.approx(line["reward"])) for line in run.steps]
    tests = [(e.step, e.value) for e in found.Scalars("eval/test/strict")]
    assert tests[-1] == (4, pytest.approx(run.evals[-1]["strict"]))
