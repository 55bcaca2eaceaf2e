"""The run directory on its own: what a kill may leave in it, and several writers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.run_files import HOSTILE
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


@pytest.mark.case(16)
@pytest.mark.case(31)
def test_any_text_is_stored_exactly(run: Run) -> None:
    """HOSTILE has half an emoji, NUL, a right-to-left mark, a terminal escape and a line separator."""
    run.append("rollouts", {"completion": HOSTILE}, {"completion": "\ufeff\n\r"})
    assert [line["completion"] for line in run.read("rollouts")] == [HOSTILE, "\ufeff\n\r"]
    run.write_json("summary", {"task": HOSTILE})
    assert run.summary == {"task": HOSTILE}
    assert run.first_command(f"train {HOSTILE}") == f"train {HOSTILE}".replace("\ud83d", "\ufffd")


@pytest.mark.case(28)
def test_secrets_are_masked_in_every_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is written: quotes and backslashes of a secret are no obstacle, and JSON stays whole."""
    secret = '"a\\b\u00e9" 12'
    monkeypatch.setenv("SOME_PASSWORD", secret)
    run.append("rollouts", {"completion": f"x{secret}", "tokens": 12, "reflection": {"list_a": [secret]}})
    run.write_json("summary", {"task": secret})
    assert run.first_command(f"train {secret}") == "train [SOME_PASSWORD]"
    expected = {"completion": "x[SOME_PASSWORD]", "tokens": 12, "reflection": {"list_a": ["[SOME_PASSWORD]"]}}
    assert list(run.read("rollouts")) == [expected]
    assert run.summary == {"task": "[SOME_PASSWORD]"}
