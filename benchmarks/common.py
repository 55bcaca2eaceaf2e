"""What the benchmarks share: parts that run one after another, each in a process of its own.

A part is a function that returns its figures. The benchmark starts itself again for each part and reads the
peak memory of that process from outside. After each part it prints the figures and writes those so far as
JSON into benchmarks/results/, or $OUT: a machine that is rented by the call may keep nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear as plain

from reinforce_lite.config import load_config
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.policy import save_policy
from reinforce_lite.models.projection import Linear
from reinforce_lite.pipeline import Pipeline, build_pipeline
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Verdict
from reinforce_lite.utils.memory import limit_fragmentation

Figures = dict[str, Any]
Part = Callable[[argparse.Namespace], Figures]
RESULTS = Path(__file__).parent / "results"
SAMPLING: dict[str, Any] = {"rollout.temperature": 0.7, "rollout.top_p": 0.9}
"""Of every program, whatever the recipe has."""


def run(
    name: str,
    parts: Mapping[str, Part],
    summary: Callable[[dict[str, Figures]], list[str]],
    flags: tuple[str, ...] = (),
) -> None:
    """The command line of a benchmark: all its parts, or with --part one of them, in this process."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument(
        "--part", choices=list(parts), help="run this part in this process and print its figures as JSON"
    )
    parser.add_argument("--only", nargs="+", choices=list(parts), help="run these parts")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument(
        "--out", type=Path, default=os.environ.get("OUT", RESULTS), help="folder for the JSON file"
    )
    arguments = parser.parse_args()
    if arguments.part:
        print("\n" + json.dumps(parts[arguments.part](arguments)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Figures] = {}
    for part in arguments.only or parts:
        options = [f"--{flag}" for flag in flags if getattr(arguments, flag)]
        results[part] = _run_process([sys.argv[0], "--part", part, "--dtype", arguments.dtype, *options])
        print(f"{part}: {_format(results[part])}", flush=True)
        lines = summary(results)
        record = {"machine": machine(), "dtype": arguments.dtype, "parts": results, "summary": lines}
        (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + "\n".join(lines))
    if failed := [part for part, figures in results.items() if "failed" in figures]:
        sys.exit(f"failed: {', '.join(failed)}")


def _run_process(command: list[str]) -> Figures:
    """Run a part; its figures, and the peak of its resident memory as the system counts it."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return {"failed": process.returncode}
    line = next(line for line in reversed(output.splitlines()) if line.startswith("{"))
    figures: Figures = json.loads(line)
    unit = 1 if sys.platform == "darwin" else 1024
    return figures | {"peak_gb": round(usage.ru_maxrss * unit / 1e9, 2)}


def _format(figures: Figures) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures.items()
    )


def ratio(results: Mapping[str, Figures], slow: str, fast: str, key: str = "seconds") -> str:
    """How many times as long one part takes as another, as a line of the summary."""
    if key not in results.get(slow, {}) or key not in results.get(fast, {}):
        return f"{slow} / {fast}: not measured"
    return f"{slow} / {fast}: {results[slow][key] / results[fast][key]:.2f}x"


def timed(job: Callable[[], Any], times: int = 3, warmup: int = 1) -> float:
    """The median time of a job in seconds, after `warmup` runs that do not count."""
    for _ in range(warmup):
        job()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def pipeline(
    arguments: argparse.Namespace, overrides: Mapping[str, Any] | None = None, ours: bool = True
) -> Pipeline:
    """The quickstart at the benchmark's dtype.

    `ours` sets the allocator as the program does; other programs keep its defaults, since with these settings
    transformers' generate takes twice as long.
    """
    if ours:
        limit_fragmentation()
    values = {"model.dtype": arguments.dtype} | SAMPLING | dict(overrides or {})
    return build_pipeline(load_config("quickstart", values))


def prompts(built: Pipeline) -> list[Prompt]:
    """The prompts of one step."""
    return [
        built.prompt_builder(p.question)
        for p in built.problems("train", built.config.rollout.prompts_per_step)
    ]


def random_groups(questions: int, samples: int, prompt: int, length: int, seed: int = 0) -> list[Group]:
    """Groups of random tokens: `prompt` tokens of a prompt, `length` of a completion."""
    source = torch.Generator().manual_seed(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, 40_000, (n,), generator=source).tolist())

    def rollout() -> Rollout:
        completion = Completion(ids(length), "", truncated=True, logprobs=(0.0,) * length)
        return Rollout(completion, "", 0.0, Verdict(False, None, ""), None)

    return [
        Group(Problem(str(q), "", ""), Prompt(ids(prompt)), tuple(rollout() for _ in range(samples)))
        for q in range(questions)
    ]


def products(llama: Llama, tokens: int, heads: int, linear: Linear = plain) -> None:
    """Run the matrix products of `tokens` tokens in the layers, and of `heads` tokens in the head."""
    weights = [
        w
        for layer in llama.layers
        for w in (layer.qkv.weight, layer.out.weight, layer.gate_up.weight, layer.down.weight)
    ]
    inputs = {w.shape[1]: torch.ones(tokens, w.shape[1], dtype=w.dtype, device=w.device) for w in weights}
    for w in weights:
        linear(inputs[w.shape[1]], w, None)
    if heads:
        head = llama.model.get_output_embeddings().weight
        linear(torch.ones(heads, head.shape[1], dtype=head.dtype, device=head.device), head, None)


def saved(built: Pipeline, folder: str) -> str:
    """Save the policy as a Hugging Face folder, for other programs; return its path."""
    save_policy(built.policy, Path(folder) / "model", {})
    return str(Path(folder) / "model")


def installed(name: str) -> bool:
    """Whether a package is installed."""
    return find_spec(name) is not None


def machine() -> str:
    """The machine in one line."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    amx = "with" if torch.cpu.get_capabilities().get("amx_bf16") else "without"
    return f"{name}, {os.cpu_count()} cores, {amx} AMX, torch {torch.__version__}"
