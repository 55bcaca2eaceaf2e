"""A run whose reward hangs, dies, leaks and lies: it goes on, stops when told to, and ends right."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.paths import RECIPE
from reinforce_lite import api
from reinforce_lite.callbacks.base import Callback
from reinforce_lite.config import load_config
from reinforce_lite.errors import ReinforceLiteError, StoppedError
from reinforce_lite.report.build import build_report
from reinforce_lite.rollout import scoring
from reinforce_lite.runlog.diagnosis import diagnose
from reinforce_lite.runlog.runs import create_run
from reinforce_lite.trainer import session

PROBLEMS = """
import os, random, sys, time
from pathlib import Path
from reinforce_lite import Problem

def problems(split):
    return [Problem(f"{split}-{i}", f"{split} question {i}?", str(i)) for i in range(12)]

def value(completion):
    return float(sum(map(ord, completion)) % 3 == 0)
"""
HOSTILE = """
def reward(problem, completion):
    kind = sum(map(ord, completion)) % 50 if problem.id.startswith("train") else 0
    if kind == 1: sys.exit(0)
    if kind == 2: os._exit(0)
    if kind == 3: os.fork()
    if kind == 4: os.chdir("/")
    if kind == 5: sys.stdout.close()
    if kind == 6: raise KeyboardInterrupt
    if kind == 7: return "1"
    return value(completion)
"""
HANGS = """
def reward(problem, completion):
    steps = Path("runs/mine/steps.jsonl")
    if problem.id.startswith("train") and steps.exists() and len(steps.read_text().splitlines()) == 2:
        Path("hangs").touch()
        9**9**9
    return value(completion)
"""


def write_task(text: str) -> dict[str, Any]:
    Path("mine.py").write_text(PROBLEMS + text)
    return {"task.name": "./mine.py"}


@pytest.fixture
def new_children() -> Callable[[], set[psutil.Process]]:
    """The children that this process has got since: other tests' fork server may live on."""
    before = set(psutil.Process().children())
    return lambda: set(psutil.Process().children()) - before


@pytest.mark.case(22)
def test_a_run_outlives_its_reward(
    settings: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    new_children: Callable[[], set[psutil.Process]],
) -> None:
    folder, pid = Path.cwd(), os.getpid()
    run = api.train(RECIPE, settings | write_task(HOSTILE) | {"train.steps": 4}, run="mine", quiet=True)
    assert (Path.cwd(), os.getpid()) == (folder, pid)
    assert [step["step"] for step in run.steps] == [1, 2, 3, 4]
    assert run.summary["stopped"] == "steps"
    faults = {line["fault"] for line in run.read("rollouts") if line.get("fault")}
    for told in ("SystemExit: 0 (line ", "ended with status 0", "KeyboardInterrupt"):
        assert any(told in fault for fault in faults), faults
    assert run.summary["reward_faults"] == sum(step["reward_faults"] for step in run.steps)
    print("still here")
    assert "still here" in capfd.readouterr().out
    assert not new_children()


@pytest.mark.slow
@pytest.mark.case(8)
@pytest.mark.case(22)
def test_ctrl_c_gets_through_while_a_reward_hangs(settings: dict[str, Any]) -> None:
    """A terminal sends it to the whole process group."""
    options = settings | write_task(HANGS) | {"task.reward_seconds": 600}
    flags = [text for key, value in options.items() for text in ("--" + key.replace("_", "-"), str(value))]
    command = [sys.executable, "-m", "reinforce_lite", "train", RECIPE, *flags, "--run", "mine"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not Path("hangs").exists():
            assert process.poll() is None
            time.sleep(0.05)
        (worker,) = psutil.Process(process.pid).children()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "--resume" in err
    assert "Traceback" not in err
    assert json.loads(Path("runs/mine/summary.json").read_text())["steps"] == 2
    assert len(Path("runs/mine/steps.jsonl").read_text().splitlines()) == 2
    assert not worker.is_running()


@pytest.mark.case(8)
@pytest.mark.case(22)
def test_a_sigterm_gets_through_while_a_reward_hangs(
    settings: dict[str, Any], new_children: Callable[[], set[psutil.Process]]
) -> None:
    def send() -> None:
        while not Path("hangs").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    options = settings | write_task(HANGS) | {"task.reward_seconds": 600}
    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(StoppedError) as caught:
        api.train(RECIPE, options, run="mine", quiet=True)
    assert caught.value.exit_code == 143
    assert json.loads(Path("runs/mine/summary.json").read_text())["steps"] == 2
    assert not new_children()


@pytest.mark.case(22)
@pytest.mark.parametrize("save_every", [2, 50])
def test_a_reward_that_fails_too_often_stops_the_run_with_everything_saved(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    monkeypatch.setattr(scoring, "MAX_FAULT_RATE", 0.05)
    options = settings | write_task(HANGS.replace("9**9**9", "os._exit(1)"))
    with pytest.raises(ReinforceLiteError, match="status 1"):
        api.train(RECIPE, options | {"train.save_every": save_every}, run="mine", quiet=True)
    steps = Path("runs/mine/steps.jsonl").read_text().splitlines()
    assert len(steps) >= 2
    assert Path("runs/mine/checkpoints/step-2").exists()


DOWN = """
def reward(problem, completion):
    trained = Path("runs/mine/steps.jsonl").exists()
    if problem.id.startswith("test") and trained and int(problem.gold) % 2:
        raise ConnectionError("the judge is down")
    return 1.0 if problem.id.startswith("test") else value(completion)
"""


@pytest.mark.case(22)
def test_rewards_that_fail_in_the_last_evaluation_change_no_accuracy(settings: dict[str, Any]) -> None:
    """All 12 test problems are right before; after training 6 are, and the reward fails on the others."""
    options = settings | write_task(DOWN) | {"train.steps": 1, "eval.n": 12}
    run = api.train(RECIPE, options, run="mine", quiet=True)
    tests = [e for e in run.evals if e["split"] == "test"]
    assert [(e["n"], e["strict"], e["reward"], e["reward_faults"]) for e in tests] == [
        (12, 1.0, 1.0, 0),
        (6, 1.0, 1.0, 6),
    ]
    assert run.summary["evals"]["paired_p"]["strict"] == 1.0
    assert run.summary["reward_faults"] == 6
    result = build_report(run).summary["result"]
    assert (result["p"]["strict"], sum(result["changes"].values())) == (1.0, 6)
    assert any("failed on 6 completions" in note for note in result["notes"])
    assert any("6 completions" in problem for problem in diagnose(run).problems)


SOAK = """
draw = random.Random(os.getpid())

def reward(problem, completion):
    if not problem.id.startswith("train"): return value(completion)
    kind = draw.random()
    if kind < 0.004: time.sleep(600)
    if kind < 0.006: 9**9**9
    if kind < 0.008: os._exit(draw.randrange(3))
    if kind < 0.010: os.kill(os.getpid(), 11)
    if kind < 0.012: hog = b"x" * 10**9; time.sleep(600)
    if kind < 0.014: os.fork()
    if kind < 0.016: sys.exit()
    if kind < 0.018: raise KeyboardInterrupt
    if kind < 0.020: print("noise " * 10**5)
    if kind < 0.030: leaks.append(b"x" * 2 * 10**7)
    if kind < 0.06: return draw.choice([float("nan"), "1", 1e308, None, [1.0], -float("inf")])
    return value(completion)

leaks = []
"""


@pytest.mark.slow
@pytest.mark.case(22)
def test_soak(
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    new_children: Callable[[], set[psutil.Process]],
) -> None:
    """300 steps with a reward that hangs, dies, leaks and lies at random; this process does not grow."""
    process, sizes = psutil.Process(), {}
    limits = {"task.reward_seconds": 1, "task.reward_memory": 0.3, "task.reward_workers": 2}
    small = {"train.steps": 300, "train.save_every": 50, "eval.every": 100, "rollout.engine": "native"}

    class Sizes(Callback):
        def stepped(self, metrics: Any, groups: Any) -> None:
            sizes[metrics.step] = process.memory_info().rss

    start = time.monotonic()
    config = load_config(RECIPE, settings | write_task(SOAK) | limits | small)
    run = session.train(config, create_run("soak"), callback=Sizes())
    faults = [line["fault"] for line in run.read("rollouts") if line.get("fault")]
    kinds = Counter(re.sub(r"0x\w+|\(line.*", "", fault)[:60] for fault in faults)
    with capsys.disabled():
        print(f"\nsoak: {time.monotonic() - start:.0f} s, {len(faults)} faults of 6000: {dict(kinds)}")
        print({step: f"{size / 1e6:.0f} MB" for step, size in sizes.items() if step % 50 == 0})
    assert run.summary["stopped"] == "steps"
    assert len(run.steps) == 300
    assert len(faults) == run.summary["reward_faults"] > 100
    assert all(abs(line["reward"]) <= 1 for line in run.read("rollouts"))
    assert sizes[300] < sizes[50] + 50e6
    assert not new_children()
