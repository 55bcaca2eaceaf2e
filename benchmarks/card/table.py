"""One table of the figures that parts have reported: a row for each, also for those that are missing."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"
MISSING = "not measured"
Line = Mapping[str, Any]

ROWS: Sequence[tuple[str, str, Mapping[str, Any], Callable[[Line], str]]] = [
    ("card", "smoke", {}, lambda x: str(x["gpu"])),
    ("torch, transformers", "smoke", {}, lambda x: f"{x['torch']}, {x['transformers']}"),
    ("a product of 8192 x 8192 matrices", "smoke", {}, lambda x: f"{x['product_tflops']:.0f} TFLOP/s"),
    ("a copy", "smoke", {}, lambda x: f"{x['copy_gb_s']:,.0f} GB/s"),
    ("a launch, on the host", "smoke", {}, lambda x: f"{x['microseconds_per_launch']:.1f} µs"),
    *(
        (
            f"largest gap of a log-probability from float64, {dtype}",
            "correct",
            {"path": "program", "dtype": dtype, "key_bias": 0.0},
            lambda x: f"{x['largest_gap']:.1g} nats",
        )
        for dtype in ("float32", "bfloat16")
    ),
    (
        "sampler against trainer, bfloat16",
        "correct",
        {"key_bias": 0.0, "repeatable": True},
        lambda x: f"{x['sampler_against_trainer_max']:.1g} nats at most, repeatable",
    ),
    *(
        (
            f"a decoding step, {sequences} sequences",
            "graph",
            {"sequences": sequences},
            lambda x: f"{x['milliseconds_per_step']:.1f} ms, {x['of_floor']:.0%} of the floor",
        )
        for sequences in (30, 160, 250)
    ),
    (
        "launches of the host in it",
        "graph",
        {"profiled": "graph-160"},
        lambda x: f"{x['launches_per_step']:.0f}, waits {x['waits_per_step']:.1f}",
    ),
    (
        "the rollout of 160 sequences, 96 tokens",
        "decode",
        {"sequences": 160},
        lambda x: f"{x['tokens_per_second']:,.0f} tokens/s",
    ),
    (
        "transformers' generate, 160 sequences",
        "generate",
        {},
        lambda x: f"{x['tokens_per_second']:,.0f} tokens/s",
    ),
    ("vLLM, 160 sequences", "vllm", {}, lambda x: f"{x['tokens_per_second']:,.0f} tokens/s"),
    *(
        (
            f"update, completions of {length} tokens",
            "update",
            {"completion_length": length},
            lambda x: f"{x['tokens_per_second']:,.0f} tokens/s, {x['of_peak']:.0%} of the product's rate",
        )
        for length in (250, 512, 1024)
    ),
    *(
        (
            f"optimizer step, {state} state{', offloaded' if offload else ''}",
            "optimizer",
            {"optimizer_state": state, "offload": offload},
            lambda x: f"{x['step_seconds']:.3f} s",
        )
        for state, offload in (("8-bit", False), ("8-bit", True), ("16-bit", False), ("32-bit", False))
    ),
    (
        "a whole step, 160 completions of 250 tokens: rollout, gradient, optimizer",
        "step",
        {"step": 2},
        lambda x: f"{x['rollout']:.2f} + {x['gradient']:.2f} + {x['optimizer']:.2f} s",
    ),
    ("a completion in it", "step", {"step": 2}, lambda x: f"{x['seconds_per_completion']:.3f} s"),
    ("a completion of the article's loop", "article", {}, lambda x: f"{x['seconds_per_completion']:.2f} s"),
    *(
        (
            label,
            part,
            {},
            lambda x: f"{x['most']:.1f} GB at most (plan {x['planned']:.1f}), reserved {x['reserved']:.1f}",
        )
        for label, part in (
            ("a full step under a cap of 24 GB", "cap24"),
            ("a step with an adapter under a cap of 12 GB", "adapter12"),
        )
    ),
    *(
        (
            f"{label}, seed {seed}: strict before, after",
            part,
            {"setting": setting, "seed": seed},
            lambda x: f"{x['before']['strict']:.1%}, {x['after']['strict']:.1%} in {x['seconds']:.0f} s",
        )
        for label, part, setting, seeds in (
            ("quickstart, real weights", "train", "full", 3),
            ("quickstart, adapter of rank 8", "train", "rank8", 3),
            ("quickstart, adapter of rank 8 at 2e-4", "train", "rank8-fast", 3),
            ("a real 0.5B on GSM8K", "gsm8k", "gsm8k", 1),
        )
        for seed in range(seeds)
    ),
]
"""Label, part, what the line has, the cell."""


def find(lines: Sequence[Line], part: str, wanted: Mapping[str, Any], cell: Callable[[Line], str]) -> str:
    """The cell of the last line that fits. The lines of one part's process may share a row's figures."""
    own = [line for line in lines if line["part"].split()[0] == part]
    if part == "smoke":  # reports in two lines
        own = [{key: value for line in own for key, value in line.items()}]
    for line in reversed(own):
        if all(line.get(key) == value for key, value in wanted.items()):
            try:
                return cell(line)
            except KeyError:  # a line of other figures
                continue
    return MISSING


def table(lines: Sequence[Line]) -> str:
    """The table in Markdown."""
    rows = [f"| {label} | {find(lines, part, wanted, cell)} |" for label, part, wanted, cell in ROWS]
    return "\n".join(["| figure | measured |", "| --- | --- |", *rows]) + "\n"


def write(folder: Path) -> str:
    """Write table.md beside the results, and return it."""
    results = folder / RESULTS
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    text = table([json.loads(line) for line in lines])
    (folder / "table.md").write_text(text, encoding="utf-8")
    return text
