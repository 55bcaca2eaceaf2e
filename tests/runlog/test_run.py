"""The run directory on its own: what a kill may leave in it, and several writers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reinforce_lite.runlog.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_line_cut_at_any_byte_ends_the_file(run: Run) -> None:
    """Inside a character too: é and 😀 are of two and four bytes."""
    file = run.path / "steps.jsonl"
    run.append("steps", {"step": 1}, {"step": 2, "text": "é 😀"})
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole) - 2):
        file.write_bytes(whole[:end])
        assert run.steps == [{"step": 1}]
    file.write_bytes(whole[:-6])  # in the middle of 😀
    run.rewind(2)
    assert file.read_bytes() == whole[:first]


def test_zeros_that_a_power_cut_leaves_end_the_file(run: Run) -> None:
    run.append("steps", {"step": 1})
    with (run.path / "steps.jsonl").open("ab") as file:
        file.write(bytes(100))
    assert run.steps == [{"step": 1}]


def test_a_resume_removes_what_a_kill_left_and_nobody_writes(run: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    ours = run.path / f".summary.json.{os.getpid()}.new"
    left = [run.path / f".summary.json.{dead.pid}.new", run.path / ".config.toml.new"]
    for file in (ours, *left):
        file.write_text(json.dumps({}))
    run.rewind(0)
    assert list(run.path.iterdir()) == [ours]
