"""The benchmarks for GPUs run in their tiny mode on a CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers.paths import ROOT
from helpers.tiny import make_model
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, PrefixTree

BENCHMARKS = ROOT / "benchmarks"
COMPARED_POLICIES = 2 * 2 * 2
"""Of `correct`: small and large key biases, two dtypes, the program and transformers' modules."""


def test_gpu_benchmark_runs_in_tiny_mode(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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


def run_card(parts: Sequence[str], out: Path) -> dict[str, list[dict[str, Any]]]:
    """The figures of some parts of card.py in its tiny mode, by part."""
    command = [sys.executable, str(BENCHMARKS / "card" / "card.py"), *parts]
    environment = os.environ | {"TINY": "1", "OUT": str(out)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return {part: [line for line in lines if line["part"] == part] for part in parts}


def test_card_runs_in_tiny_mode(tmp_path: Path) -> None:
    figures = run_card(["correct", "kernels", "decode", "update"], tmp_path)
    compared = [line for line in figures["correct"] if "path" in line]
    assert len(compared) == COMPARED_POLICIES
    assert all(line["largest_gap"] < 1e-3 for line in compared if line["dtype"] == "float32")
    assert [line["optimizer_state"] for line in figures["correct"] if line.get("applied")] == [
        "32-bit",
        "16-bit",
        "8-bit",
    ]
    (merged,) = figures["kernels"]
    assert all(merged[name] < 1e-5 for name in ("merged", "d_queries", "d_keys", "d_values"))
    assert figures["decode"][0]["tokens_per_second"] > 0
    assert figures["update"][0]["tokens_per_second"] > 0


@pytest.mark.slow
def test_card_runs_its_other_parts_in_tiny_mode(tmp_path: Path) -> None:
    parts = ["smoke", "cap24", "step", "article", "generate"]
    assert all(run_card(parts, tmp_path).values())


@pytest.fixture
def varlen_tree(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "card"))
    return __import__("varlen_tree")


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("prefix", [0, 9])
def test_varlen_tree_attention_equals_prefix_attention(
    prefix: int, dtype: torch.dtype, bound: float, varlen_tree: ModuleType
) -> None:
    """Three prompts; the second has no completions, the first has one of a single token."""
    llama = Llama(make_model().to(dtype))
    heads = [llama.query_heads, llama.kv_heads, llama.kv_heads]
    completions = [[range(1 + 7 * j + i) for j in range(4)] if i != 1 else [] for i in range(3)]
    branches = [Branch(range(5 + i), completions[i]) for i in range(3)]
    tree = PrefixTree(branches, prefix, torch.device("cpu"))
    torch.manual_seed(0)
    qkv = torch.randn(len(tree.ids), sum(heads) * llama.head_size, dtype=dtype).requires_grad_()
    shared = torch.randn(prefix, 2 * llama.kv_heads * llama.head_size, dtype=dtype).requires_grad_()
    grad = torch.randn(len(tree.ids), llama.query_heads * llama.head_size, dtype=dtype)

    expected = PrefixAttention(llama, tree, [shared] if prefix else ())(0, qkv)
    parts = varlen_tree.layout(
        [len(b.prompt) for b in branches],
        [[len(c) - 1 for c in b.completions] for b in branches],
        prefix,
        torch.device("cpu"),
    )
    q, k, v = torch.split(qkv.view(len(qkv), -1, llama.head_size), heads, dim=1)
    shared_heads = shared.view(prefix, llama.kv_heads * 2, llama.head_size)
    prefix_kv = torch.split(shared_heads, heads[1:], dim=1) if prefix else (None, None)
    found = varlen_tree.VarlenTreeAttention.apply(q, k, v, *prefix_kv, parts, llama.scale).flatten(1)
    leaves = [qkv, shared] if prefix else [qkv]
    pairs = zip(
        [found, *torch.autograd.grad(found, leaves, grad)],
        [expected, *torch.autograd.grad(expected, leaves, grad)],
        strict=True,
    )
    assert all((a - b).norm() < bound * b.norm() for a, b in pairs)
