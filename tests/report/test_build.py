"""What the page gets to explain advantages with."""

from pathlib import Path

import pytest

from helpers import run_files as runs
from reinforce_lite.report.build import build_report
from reinforce_lite.runlog.records import Record

LITE: Record = {
    "baseline": "leave-one-out",
    "scale": "leave-one-out",
    "clip": 2.0,
    "epsilon": 1e-8,
    "refill": False,
    "warm_start": 0,
}


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ('preset = "reinforce-lite"', LITE),
        (
            'preset = "reinforce-lite"\nscale = "none"\nadvantage_clip = "none"',
            LITE | {"scale": "none", "clip": None},
        ),
        (
            'preset = "dr-grpo"\nadvantage_clip = 3.0',
            LITE | {"baseline": "group", "scale": "none", "clip": 3.0},
        ),
        ('preset = "reinforce-lite"\n[rollout]\nrefill = 2', LITE | {"refill": True}),
        ('preset = "reinforce-lite"\n[train]\nwarm_start = 3', LITE | {"warm_start": 3}),
        ('preset = "unheard of"', None),
        ('preset = "reinforce-lite"\nclamp = 2.0', None),
        ("", None),
    ],
)
def test_objective_of_the_run(objective: str, expected: Record | None, tmp_path: Path) -> None:
    """None for the config of another version."""
    run = runs.write(tmp_path / "a")
    (run.path / "config.toml").write_text(f"[objective]\n{objective}\n", encoding="utf-8")
    assert build_report(run).details["objective"] == expected


def test_page_of_an_older_run_is_the_same(tmp_path: Path) -> None:
    """Its lines lack empty lists of reflection words and faults, and golds are numbers."""
    run = runs.large(tmp_path / "a", steps=6, questions=3, samples=4, tests=20)
    page = build_report(run)
    assert page.details["excerpts"]
    runs.make_older(run)
    assert '"gold": 7' in (run.path / "rollouts.jsonl").read_text(encoding="utf-8")
    assert build_report(run) == page
