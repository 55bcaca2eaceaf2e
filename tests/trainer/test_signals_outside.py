"""The real program and real signals, in each phase of a run: exit status, no traceback, nothing lost."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest

from reinforce_lite.callbacks.base import SAMPLING, SAVING_CHECKPOINT, SELF_CHECK, UPDATING
from reinforce_lite.runlog.runs import find_run

pytestmark = pytest.mark.case(8)

SMALL = "--model.dtype float32 --train.save-every 1 --rollout.prompts-per-step 4 --rollout.max-new-tokens 16"
SMALL += " --task.name ./my_task.py --eval.n 4 --eval.validation-n 4 --eval.every 1 --prompt.max-tokens 1500"


TASK = """
from reinforce_lite import Problem

def problems(split):
    return [Problem(f"{split}-{n}", f"In {split}: how long is {'x' * n}?", str(n)) for n in range(2, 8)]

def reward(problem, completion):
    return float(sum(map(ord, completion)) % 3 == 0)
"""
"""Which the tiny model solves now and then, so that it is updated."""


def start(model_folder: Path, *options: str) -> subprocess.Popen[str]:
    """A run of the tiny model in the current folder."""
    Path("my_task.py").write_text(TASK)
    command = [sys.executable, "-m", "reinforce_lite", "train", "--run", "mine"]
    return subprocess.Popen(
        [*command, "--model.name", str(model_folder), *SMALL.split(), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def send_at(process: subprocess.Popen[str], line: str, signums: Sequence[int]) -> tuple[int, str]:
    """Send signals when the output has a line; the exit status and the standard error."""
    assert process.stdout is not None
    assert any(line in printed for printed in process.stdout)
    for signum in signums:
        process.send_signal(signum)
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err
    return process.returncode, err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_libraries_are_loaded(model_folder: Path, in_tmp: Path, signum: int) -> None:
    with start(model_folder) as process:
        status, _ = send_at(process, "loading libraries", [signum])
    assert status == 128 + signum


LAST = "saving the model"
PHASES = (
    "loading /",
    SELF_CHECK,
    "evaluating on validation",
    SAMPLING,
    UPDATING,
    SAVING_CHECKPOINT,
    "step 2/",
    LAST,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "signum"), list(zip(PHASES, cycle((signal.SIGINT, signal.SIGTERM)), strict=False))
)
def test_a_signal_in_each_phase(model_folder: Path, in_tmp: Path, phase: str, signum: int) -> None:
    """And the run is resumed to its end, unless it has ended already."""
    with start(model_folder, "--train.steps", "3") as process:
        status, _ = send_at(process, phase, [signum])
    assert status in ({0, 128 + signum} if phase == LAST else {128 + signum})
    with start(model_folder, "--train.steps", "3", "--resume") as process:
        process.communicate(timeout=300)
    assert process.returncode == 0
    run = find_run("mine")
    assert run.summary["stopped"] == "steps"
    assert [step["step"] for step in run.steps] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["loading libraries", SAMPLING, SAVING_CHECKPOINT])
def test_a_second_signal_leaves_at_once(model_folder: Path, in_tmp: Path, phase: str) -> None:
    with start(model_folder, "--train.steps", "3") as process:
        status, err = send_at(process, phase, [signal.SIGINT, signal.SIGINT])
    assert status == 130
    assert "stopped by" not in err or phase != "loading libraries"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["eval", "ask"])
def test_a_signal_ends_the_other_commands(model_folder: Path, in_tmp: Path, command: str) -> None:
    arguments = [command, str(model_folder), *(["2+2?"] if command == "ask" else [])]
    with subprocess.Popen(
        [sys.executable, "-m", "reinforce_lite", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        status, _ = send_at(process, "loading libraries", [signal.SIGTERM])
    assert status == 143


def test_a_closed_terminal_ends_a_run_with_everything_saved(model_folder: Path, in_tmp: Path) -> None:
    """As when a connection is lost: the display has nowhere to go, and the kernel sends SIGHUP."""
    Path("my_task.py").write_text(TASK)
    command = [sys.executable, "-m", "reinforce_lite", "train", "--run", "mine", *SMALL.split()]
    terminal, end = os.openpty()
    with subprocess.Popen(
        [*command, "--model.name", str(model_folder), "--train.steps", "500"],
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(end)
        while not find_steps():
            os.read(terminal, 65536)
        os.close(terminal)
        assert process.wait(timeout=120) == 129
    run = find_run("mine")
    assert run.summary["stopped"] == "signal"
    assert (run.path / "checkpoints" / f"step-{run.summary['steps']}").is_dir()


def find_steps() -> bool:
    """Whether a step is done."""
    file = Path("runs/mine/steps.jsonl")
    return file.exists() and file.stat().st_size > 0
