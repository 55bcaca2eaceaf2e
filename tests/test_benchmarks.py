"""The benchmarks for GPUs run in their tiny mode on a CPU."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.paths import ROOT
from reinforce_lite.engines.sampler import CANDIDATES
from reinforce_lite.models.embedded import cache_folder

BENCHMARKS = ROOT / "benchmarks"
COMPARED_POLICIES = 2 * 2 * 2
"""Of `correct`: small and large key biases, two dtypes, the program and transformers' modules."""


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the modules of the benchmarks importable."""
    for folder in (BENCHMARKS, BENCHMARKS / "card"):
        monkeypatch.syspath_prepend(str(folder))


def test_gpu_benchmark_runs_in_tiny_mode(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny"]
    environment = os.environ | {"OUT": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert set(results["parts"]) == {"decode", "update", "step", "article"}
    for name, figures in results["parts"].items():
        assert "failed" not in figures, done.stderr
        assert all(value > 0 for value in figures.values()), name
        assert 0.1 < figures["peak_gb"] < 10
    step, article = results["parts"]["step"], results["parts"]["article"]
    assert step["seconds"] == step["rollout"] + step["update"]
    ratio = article["seconds_per_completion"] / step["seconds_per_completion"]
    assert results["summary"] == [f"article / step: {ratio:.2f}x"]


@pytest.mark.usefixtures("importable")
def test_gpu_benchmark_samples_from_narrow_nuclei() -> None:
    """Else every decoding step would sort the whole vocabulary."""
    policy = __import__("gpu").build(SimpleNamespace(tiny=True))
    tokens = torch.arange(100, 200)[None]
    logits = policy.model(tokens).logits[0].detach().float()
    assert float(logits.std(1).mean()) == pytest.approx(7, rel=0.1)
    p = (logits / 0.7).softmax(-1).topk(CANDIDATES).values
    assert (p.sum(1) > 0.9).float().mean() > 0.99


def test_figures_outlast_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import os, signal, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from common import run

def first(arguments):
    return {{"seconds": 1.5}}

def second(arguments):
    os.kill(os.getppid(), signal.SIGKILL)

run("figures", {{"first": first, "second": second}}, lambda results: [])
"""
    )
    done = subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    parts = json.loads((tmp_path / "figures.json").read_text())["parts"]
    assert parts["first"]["seconds"] == 1.5


def run_card(parts: Sequence[str], out: Path) -> dict[str, list[dict[str, Any]]]:
    """The figures of some parts of card.py in its tiny mode, by part."""
    command = [sys.executable, str(BENCHMARKS / "card" / "card.py"), *parts]
    environment = os.environ | {"TINY": "1", "OUT": str(out)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return {part: [line for line in lines if line["part"] == part] for part in parts}


def test_card_runs_in_tiny_mode(tmp_path: Path) -> None:
    figures = run_card(["correct", "kernels", "decode", "graph", "update"], tmp_path)
    compared = [line for line in figures["correct"] if "path" in line]
    assert len(compared) == COMPARED_POLICIES
    assert all(line["largest_gap"] < 1e-3 for line in compared if line["dtype"] == "float32")
    assert [line["optimizer_state"] for line in figures["correct"] if line.get("applied")] == [
        "32-bit",
        "16-bit",
        "8-bit",
    ]
    merged, *times = figures["kernels"]
    assert [line["function"] for line in times if "function" in line] == [
        *("rms_norm", "swiglu", "swiglu_backward", "rotate", "merge"),
    ]
    assert all(merged[name] < 1e-5 for name in ("merged", "d_queries", "d_keys", "d_values"))
    assert figures["decode"][0]["tokens_per_second"] > 0
    (step,) = (line for line in figures["graph"] if "milliseconds_per_step" in line)
    assert step["milliseconds_per_step"] > 0
    assert step["idle_rows"] == 0
    assert figures["update"][0]["of_peak"] > 0


@pytest.mark.slow
def test_card_runs_its_other_parts_in_tiny_mode(tmp_path: Path) -> None:
    parts = [
        "smoke",
        "optimizer",
        "cap24",
        "adapter12",
        "step",
        "article",
        "generate",
        "tests tests/utils/test_tensors.py",
    ]
    figures = run_card(parts, tmp_path)
    assert all(figures.values())
    assert figures[parts[-1]][0]["status"] == 0


@pytest.mark.slow
def test_card_trains_several_seeds_concurrently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real model from the cache; runs go under another home."""
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(cache_folder()))
    monkeypatch.setenv("HOME", str(tmp_path))
    (figures,) = run_card(["train full rank8"], tmp_path).values()
    runs = figures[1:]
    assert [(line["setting"], line["seed"]) for line in runs] == [
        *(("full", 0), ("full", 1), ("rank8", 0), ("rank8", 1)),
    ]
    assert all(len(line["rewards"]) == 1 and line["after"]["n"] == 2 for line in runs)
