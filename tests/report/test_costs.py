"""Costs: time by phase, memory, and the machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from helpers.run_files import step, summary_of

F, T = False, True


def test_costs_are_split_by_phase(tmp_path: Path) -> None:
    """Two steps of 4 + 1 + 5 s, two evaluations of 3 s, 100 s in total."""
    run = runs.finished(tmp_path / "a", ([T], [T]))
    run.write_json(
        "summary", run.summary | {"memory": {"planned_bytes": 4, "dry_run_bytes": 5, "peak_bytes": 6}}
    )
    costs = summary_of(run)["costs"]
    assert costs["time"] == {
        "rollout": 8,
        "reward": 2,
        "update": 10,
        "evaluation": 6,
        "other": 74,
        "total": 100,
    }
    assert costs["memory"] == {"planned": 4, "dry_run": 5, "measured": 6}


MACHINE = {
    "system": "Linux x86_64",
    "processor": "Intel Xeon",
    "cores": 2,
    "memory_bytes": 16_000_000_000,
    "versions": {"torch": "2.12.0"},
    "device": "cpu",
    "dtype": "bfloat16",
    "planned_bytes": 4_000_000_000,
}


def test_machine_of_a_run_in_progress(tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1)], planned=9)
    (run.path / "machine.json").write_text(json.dumps(MACHINE), encoding="utf-8")
    costs = summary_of(run)["costs"]
    assert costs["facts"]["machine"] == "Linux x86_64, Intel Xeon, 2 cores, 16 GB, cpu, bfloat16"
    assert costs["facts"]["versions"] == "torch 2.12.0"
    assert costs["memory"]["planned"] == 4_000_000_000


def test_machine_names_the_gpu(tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1)], planned=9)
    gpu = {"gpu": "NVIDIA A6000", "gpu_memory_bytes": 48_000_000_000, "device": "cuda"}
    (run.path / "machine.json").write_text(json.dumps(MACHINE | gpu), encoding="utf-8")
    assert summary_of(run)["costs"]["facts"]["machine"] == (
        "Linux x86_64, Intel Xeon, 2 cores, 16 GB, NVIDIA A6000, 48 GB, cuda, bfloat16"
    )


def test_summary_overrides_machine_file(tmp_path: Path) -> None:
    summary: dict[str, Any] = {
        "machine": "Linux arm",
        "versions": {"torch": "2.13.0"},
        "memory": {"planned_bytes": 5},
        "dtype": "float32",
    }
    run = runs.write(tmp_path / "a", [step(1)], stopped="steps", **summary)
    (run.path / "machine.json").write_text(json.dumps(MACHINE), encoding="utf-8")
    costs = summary_of(run)["costs"]
    assert costs["facts"]["machine"] == "Linux arm, Intel Xeon, 2 cores, 16 GB, cpu, float32"
    assert costs["facts"]["versions"] == "torch 2.13.0"
    assert costs["memory"]["planned"] == 5


@pytest.mark.parametrize("text", ["{}", '{"system": null, "cores": 1}', '{"system": "Li', "[]", "7"])
def test_machine_file_may_be_incomplete(text: str, tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1)], planned=9)
    (run.path / "machine.json").write_text(text, encoding="utf-8")
    costs = summary_of(run)["costs"]
    assert costs["facts"].get("machine") == ("1 core" if "cores" in text else None)
    assert costs["memory"]["planned"] is None


def test_memory_of_older_and_unfinished_runs(tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1), step(2, **{"memory/peak_bytes": 3_500_000_000})])
    assert summary_of(run)["costs"]["memory"] == {"planned": None, "dry_run": None, "measured": 3_500_000_000}
    run.write_json(
        "summary", {"stopped": "steps", "steps": 2, "seconds": 30.0, "peak_memory_bytes": 3_600_000_000}
    )
    assert summary_of(run)["costs"]["memory"]["measured"] == 3_600_000_000
