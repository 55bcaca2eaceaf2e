"""The benchmark for graphics cards runs with a tiny model on a CPU."""

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.paths import ROOT
from reinforce_lite.engines.sampler import CANDIDATES
from reinforce_lite.models.embedded import cache_folder

BENCHMARKS = ROOT / "benchmarks"
COMPARED_POLICIES = 2 * 2 * 2
"""Of `correct`: small and large key biases, two dtypes, the program and transformers' modules."""
Lines = list[dict[str, Any]]


@pytest.fixture
def run_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], Lines]:
    """Runs a part of gpu.py in this process, with a tiny model; its figures."""
    monkeypatch.setenv("TINY", "1")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    shared = importlib.import_module("card.shared")
    assert shared.TINY
    monkeypatch.setattr(shared, "OUT", tmp_path)

    def run(module: str, part: str) -> Lines:
        monkeypatch.setattr(shared, "PART", part)
        getattr(importlib.import_module(f"card.{module}"), part)()
        lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
        return [line for line in lines if line["part"] == part]

    return run


def run_gpu(parts: Sequence[str], out: Path) -> tuple[dict[str, Lines], str]:
    """gpu.py as a command, with a tiny model: the figures by part, and the table."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(out), *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    table = (out / "table.md").read_text()
    assert table in done.stdout
    return {part: [line for line in lines if line["part"] == part] for part in parts}, table


def test_gpu_benchmark_writes_figures_and_a_table(tmp_path: Path) -> None:
    figures, table = run_gpu(["smoke"], tmp_path)
    assert f"| torch, transformers | {figures['smoke'][0]['torch']}, " in table
    assert "| a completion of the article's loop | not measured |" in table


def test_gpu_benchmark_compares_with_float64(run_part: Callable[[str, str], Lines]) -> None:
    lines = run_part("correctness", "correct")
    compared = [line for line in lines if "path" in line]
    assert len(compared) == COMPARED_POLICIES
    assert all(line["largest_gap"] < 1e-3 for line in compared if line["dtype"] == "float32")
    assert [line["optimizer_state"] for line in lines if line.get("applied")] == ["32-bit", "16-bit", "8-bit"]


def test_gpu_benchmark_checks_and_times_kernels(run_part: Callable[[str, str], Lines]) -> None:
    merged, *times = run_part("kernels", "kernels")
    assert [line["function"] for line in times if "function" in line] == [
        *("rms_norm", "swiglu", "swiglu_backward", "rotate", "merge"),
    ]
    assert all(merged[name] < 1e-5 for name in ("merged", "d_queries", "d_keys", "d_values"))


def test_gpu_benchmark_times_decoding_and_updates(run_part: Callable[[str, str], Lines]) -> None:
    assert run_part("decoding", "decode")[0]["tokens_per_second"] > 0
    (step,) = (line for line in run_part("decoding", "graph") if "milliseconds_per_step" in line)
    assert step["milliseconds_per_step"] > 0
    assert step["idle_rows"] == 0
    assert run_part("updating", "update")[0]["of_peak"] > 0


def test_gpu_benchmark_compares_a_step_with_the_articles(run_part: Callable[[str, str], Lines]) -> None:
    first, second = run_part("steps", "step")
    assert (first["step"], second["step"]) == (1, 2)
    spent = second["rollout"] + second["gradient"] + second["optimizer"]
    assert second["seconds_per_completion"] == pytest.approx(spent / 20)  # 2 questions x 10
    (article,) = run_part("steps", "article")
    assert article["seconds_per_completion"] == pytest.approx((article["rollout"] + article["update"]) / 10)


@pytest.mark.usefixtures("run_part")
def test_gpu_benchmark_samples_from_narrow_nuclei() -> None:
    """Else every decoding step would sort the whole vocabulary."""
    shared = importlib.import_module("card.shared")
    model = shared.build_model(shared.SMALL, "float32")
    logits = model(torch.arange(100, 200)[None]).logits[0].detach()
    assert float(logits.std(1).mean()) == pytest.approx(7, rel=0.1)
    p = (logits / 0.7).softmax(-1).topk(CANDIDATES).values
    assert (p.sum(1) > 0.9).float().mean() > 0.99


@pytest.mark.usefixtures("run_part")
def test_table_of_the_gpu_benchmark_has_the_last_figures() -> None:
    step = {"part": "graph", "sequences": 160, "milliseconds_per_step": 5.0, "of_floor": 0.5}
    run = {"part": "train full rank8", "setting": "full", "seconds": 89.0, "before": {"strict": 0.27}}
    lines = [
        *(step | {"milliseconds_per_step": 6.1, "of_floor": 0.397}, step),
        {"part": "graph", "profiled": "graph-160", "launches_per_step": 1.0, "waits_per_step": 0.5},
        *(run | {"seed": seed, "after": {"strict": strict}} for seed, strict in enumerate((0.725, 0.735))),
    ]
    rows = importlib.import_module("card.table").table(lines).splitlines()
    assert "| a decoding step, 160 sequences | 5.0 ms, 50% of the floor |" in rows
    assert "| launches of the host in it | 1, waits 0.5 |" in rows
    assert "| quickstart, real weights, seed 1: strict before, after | 27.0%, 73.5% in 89 s |" in rows
    assert "| quickstart, real weights, seed 2: strict before, after | not measured |" in rows


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


@pytest.mark.slow
def test_gpu_benchmark_runs_its_other_parts(tmp_path: Path) -> None:
    parts = ["optimizer", "cap24", "adapter12", "generate", "vllm", "tests tests/utils/test_tensors.py"]
    figures, _ = run_gpu(parts, tmp_path)
    assert all(figures.values())
    assert figures[parts[-1]][0]["status"] == 0


@pytest.mark.slow
def test_gpu_benchmark_trains_several_seeds_concurrently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real model from the cache; runs go under another home."""
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(cache_folder()))
    monkeypatch.setenv("HOME", str(tmp_path))
    (figures,) = run_gpu(["train full rank8"], tmp_path)[0].values()
    runs = figures[1:]
    assert [(line["setting"], line["seed"]) for line in runs] == [
        *(("full", 0), ("full", 1), ("rank8", 0), ("rank8", 1)),
    ]
    assert all(len(line["rewards"]) == 1 and line["after"]["n"] == 2 for line in runs)


def test_simulation_of_scale_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds: 2 questions, then one. A round ends with its slowest process, and the update too."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    scale: Any = importlib.import_module("scale")
    costs = scale.Costs(1.0, 0.1, 0.01, 5.0, gradient_bytes=80.0, bandwidth=10.0)
    assert scale.sampling_seconds(costs, [[10, 20], [30, 5]], 2) == pytest.approx([20 + 3.0, 30 + 3.5])
    assert scale.sampling_seconds(costs, [[4, 8]], 2) == pytest.approx([8 + 1.2, 0.0])
    assert scale.update_seconds(costs, [10, 20, 30, 40], 2) == pytest.approx([0.6, 0.4])
    assert scale.sum_seconds(costs, 2) == pytest.approx(8.0)
    assert scale.sum_seconds(costs, 4) == pytest.approx(12.0)
    assert scale.sum_seconds(costs, 1) == 0.0
    rounds, trained = [[[10, 20], [30, 5]], [[4, 8]]], [10, 20, 30, 40]
    assert scale.step_seconds(costs, rounds, trained, 2) == pytest.approx(33.5 + 9.2 + 0.6 + 8.0 + 5.0)


def test_simulation_of_scale_is_fitted_to_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of processes that take 2 s for each decoding step, 0.5 s a token, and 0.25 s a trained token."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    scale: Any = importlib.import_module("scale")
    steps = [([[1], [1]], [1])] * 2 + [([[4, 8], [6, 2]], [4, 8]), ([[10, 10], [3, 5]], [3, 5])]
    one = {"samples": [9.0, 9.0, 26.0, 34.0], "updates": [9.0, 9.0, 3.0, 2.0], "steps": steps}
    first = {"samples": [0.0, 0.0, 22.0, 30.0], "updates": [0.0, 0.0, 1.0, 0.75], "steps": steps}
    second = {"samples": [0.0, 0.0, 16.0, 14.0], "updates": [0.0, 0.0, 2.0, 1.25], "steps": steps}
    times = {"step_time": [1.0, 1.0, 30.0, 40.0]}
    figures = scale.compare({1: [one | times], 2: [first | times, second | times]})
    assert figures["decode"] == pytest.approx(2.0, rel=1e-4)
    assert figures["token"] == pytest.approx(0.5, rel=1e-4)
    assert figures["update"] == pytest.approx(0.25)
    for n, sampling, update in ((1, 60.0, 5.0), (2, 52.0, 3.25)):
        for what, seconds in (("samples", sampling), ("updates", update)):
            assert figures[f"{what}, {n} processes"] == pytest.approx(seconds, abs=0.01)
            assert figures[f"{what}, {n} processes, simulated"] == pytest.approx(seconds, abs=0.01)
    assert figures["seconds, 2 processes"] == 70.0


def make_checkout(folder: Path, seconds: float) -> Path:
    """A checkout whose only benchmark sleeps."""
    (folder / "benchmarks").mkdir(parents=True)
    text = f"import time\ndef nap(arguments):\n    return timed(lambda: time.sleep({seconds}))\n"
    (folder / "benchmarks" / "naps.py").write_text(text)
    return folder


def test_two_states_are_compared_in_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    compare = importlib.import_module("compare")
    monkeypatch.setattr(compare, "NOW", make_checkout(tmp_path / "now", 0.3))
    before = make_checkout(tmp_path / "before", 0.1)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(before), "naps.nap", "--pairs", "2", "--turns", "2"])
    compare.main()
    *turns, mean = capfd.readouterr().out.splitlines()
    assert len(turns) == 4
    assert 1.5 < float(mean.split()[4]) < 6


def test_a_state_whose_benchmark_fails_ends_the_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    compare = importlib.import_module("compare")
    monkeypatch.setattr(compare, "NOW", make_checkout(tmp_path / "now", 0.0))
    with pytest.raises(SystemExit, match="ended early"):
        compare.compare(tmp_path / "now", "naps.missing", "float32", 1, now_first=False)
