"""The benchmark for graphics cards runs, on a tiny model, where there is none."""

import json
import subprocess
import sys
from pathlib import Path

from helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


def test_the_gpu_benchmark_in_its_tiny_mode(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["parts"]) == {"decode", "update", "step", "first"}
    for name, figures in found["parts"].items():
        assert "failed" not in figures, done.stderr
        assert all(value > 0 for value in figures.values()), name
        assert 0.1 < figures["peak_gb"] < 10
    step, first = found["parts"]["step"], found["parts"]["first"]
    assert step["seconds"] == step["rollout"] + step["update"]
    ratio = first["seconds_per_answer"] / step["seconds_per_answer"]
    assert found["summary"] == [f"first / step: {ratio:.2f}x"]
