"""The plan against measurements: peak memory by phase over whole steps of the largest size.

python benchmarks/memory.py           # GPU: a 3B model with random weights under hard caps; CPU: SmolLM2
python benchmarks/memory.py --tiny    # a tiny model on a CPU: tries the benchmark itself

On a GPU each part runs under a hard cap of 48, 36 or 24 GB (torch.cuda.set_per_process_memory_fraction) with
the settings that the plan chooses for it. On a CPU the quickstart runs in five settings, planned with the
actual length of its prompts; memory is the resident set less that of a process that has only imported torch.
"""

import argparse
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if "--tiny" in sys.argv:
    os.environ["TINY"] = "1"  # read when card.shared is imported

import torch
from card.shared import SHAPE, TINY, build, random_groups
from common import Figures, run

from reinforce_lite.config import UpdateConfig, load_config, override_config
from reinforce_lite.engines import cache_size
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.learner import optimizers
from reinforce_lite.learner.optimizers import make_optimizer
from reinforce_lite.learner.updater import Updater
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.planner import estimate
from reinforce_lite.planner.estimate import (
    BACKWARD,
    GB,
    LOGITS,
    OPTIMIZER_STEP,
    ROLLOUT,
)
from reinforce_lite.planner.model_shape import shape_of
from reinforce_lite.planner.plan import Plan, best_plan, check_fits, chosen_flags, plan_unchanged
from reinforce_lite.planner.schemes import Target
from reinforce_lite.trainer import dry_run
from reinforce_lite.types import Group, Sampling
from reinforce_lite.utils.memory import CUDA_CONTEXT, limit_fragmentation, release_cached_memory

PHASES = {"rollout": (ROLLOUT,), "update": (LOGITS, BACKWARD), "weights": (OPTIMIZER_STEP,)}
EMPTY = "import torch; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
PROMPT = 100


@contextmanager
def peak(phase: str, peaks: Figures, device: torch.device) -> Iterator[None]:
    """Add the peak memory within the block, in bytes, to `peaks`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield
        peaks[phase] = torch.cuda.max_memory_allocated()
        peaks["reserved"] = max(peaks.get("reserved", 0), torch.cuda.max_memory_reserved())
        return
    samples, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            samples.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    done.set()
    watcher.join()
    peaks[phase] = max(samples)


def resident() -> int:
    """The resident set of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def phases(updater: Updater, sample: Callable[[], list[Group]]) -> dict[str, int]:
    """Run two whole steps; the second has every tensor that a run holds."""
    peaks: dict[str, int] = {}
    device = updater.policy.device
    for step in (1, 2):
        release_cached_memory()
        with peak("rollout", peaks, device):
            asked = sample()
        release_cached_memory()
        shape = (len(asked), len(asked[0].rollouts))
        weights = torch.linspace(-1, 1, shape[0] * shape[1], dtype=torch.float64).view(shape) / 1e4
        with peak("update", peaks, device):
            gradient = updater.compute_gradient(asked, weights)
        with peak("weights", peaks, device):
            assert updater.apply_gradient(gradient, step)
    return peaks


def figures(measured: Mapping[str, int], planned: Plan, empty: int, left_out: int) -> Figures:
    """In GB, by phase: `empty` is what a process without tensors holds, and `left_out` what the plan has of
    it, or more."""
    found: Figures = {}
    for phase, moments in PHASES.items():
        found[phase] = round((measured[phase] - empty) / GB, 2)
        found[f"{phase}_planned"] = round((max(map(planned.bytes_in, moments)) - left_out) / GB, 2)
    return found | {"empty": empty / GB, "planned": (planned.total - left_out) / GB}


def arithmetic(arguments: argparse.Namespace) -> Figures:
    """Bytes that 8-bit AdamW needs in addition for each number of a piece."""
    limit_fragmentation()
    numbers = optimizers.PIECE
    weight = torch.randn(numbers).bfloat16().requires_grad_()
    weight.grad = torch.randn(numbers).bfloat16()
    optimizer = make_optimizer(UpdateConfig(optimizer_state="8-bit"), {"w": weight})
    optimizer.step(1e-5, 0)
    release_cached_memory()
    peaks: dict[str, int] = {"start": resident()}
    with peak("step", peaks, weight.device):
        for _ in range(20):
            optimizer.step(1e-5, 1)
    return {"bytes_per_number": (peaks["step"] - peaks["start"]) / numbers}


def on_cpu(arguments: argparse.Namespace, **values: Any) -> Figures:
    """The quickstart with some settings."""
    overrides = {key.replace("__", "."): value for key, value in values.items()} | {"model.device": "cpu"}
    if arguments.tiny:
        overrides |= {"rollout.max_new_tokens": 4, "rollout.group_size": 3}
    settings = load_config("quickstart", overrides)
    pipeline = build_pipeline(settings)
    problems = dry_run.longest_problems(pipeline)
    length = len(pipeline.prompt_builder(problems[0].question).token_ids)
    settings = override_config(settings, {"prompt.max_tokens": length})
    planned = plan_unchanged(settings)
    updater = Updater(pipeline.policy, settings.update, settings.rollout.temperature, 0)
    measured = phases(updater, lambda: dry_run.full_length_groups(pipeline, problems))
    release_cached_memory()
    with peak("evaluation", measured, pipeline.policy.device):
        pipeline.eval_groups(pipeline.problems("test", 4 if arguments.tiny else settings.eval.n))
    measured["rollout"] = max(measured["rollout"], measured.pop("evaluation"))
    held = subprocess.run([sys.executable, "-c", EMPTY], capture_output=True, check=True).stdout
    empty = 1024 * int(held)
    return figures(measured, planned, empty, empty)


def under_a_cap(gb: int, rank: int = 0) -> Figures:
    """The 3B recipe as the plan adapts it to `gb` GB of GPU memory, with an adapter if it has a rank."""
    whole = None
    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        cache_size.CACHE_SHARE *= gb * GB / whole  # as on a GPU of that size, and as the plan counts
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gb * GB - CUDA_CONTEXT) / whole))
    policy = build(SHAPE)
    new = 4 if TINY else 512
    values = {"prompt.max_tokens": PROMPT, "rollout.max_new_tokens": new}
    values |= {"eval.n": 1, "eval.validation_n": 1}
    few = {"rollout.prompts_per_step": 1} if TINY else {}
    values |= few | {"update.optimizer_state": "32-bit", "adapter.rank": rank}
    settings = load_config("gsm8k-3b-48gb", values)
    shape = shape_of(policy.model, PROMPT + new)
    place = Target(policy.device.type, policy.dtype, gb * GB, installed=whole)
    planned = best_plan(Plan(settings, settings, shape, place))
    check_fits(planned)
    chosen = planned.config
    if rank:
        policy.add_adapter(chosen.adapter, seed=0)
    engine = NativeEngine(policy, chosen.rollout.max_num_seqs)
    asked = random_groups(chosen.rollout.prompts_per_step, chosen.rollout.group_size, PROMPT, new)
    sampling = Sampling(len(asked[0].rollouts), new, new, temperature=0.7, top_p=0.9)

    def sample() -> list[Group]:
        engine.generate([g.prompt for g in asked], sampling, 0)
        return asked

    measured = phases(Updater(policy, chosen.update, chosen.rollout.temperature, 0), sample)
    reserved = measured.pop("reserved", 0)
    found = figures(measured, planned, 0, sum(part.bytes for part in estimate.OVERHEAD["cuda"]))
    found |= {"reserved": reserved / GB, "most": max(measured.values()) / GB}
    return {"chosen": chosen_flags(planned)} | found


def lines(results: Mapping[str, Figures]) -> list[str]:
    """The total against the plan: on a GPU what torch allocated, on a CPU what the system counted."""
    summary = []
    for name, f in results.items():
        if "planned" in f:
            most = f.get("most", f["peak_gb"] - f["empty"])
            off = 100 * (f["planned"] / most - 1)
            summary.append(f"{name}: planned {f['planned']:.2f} GB, measured {most:.2f} GB, {off:+.0f}%")
    return summary


CPU_SETTINGS: dict[str, dict[str, Any]] = {
    "bfloat16_32bit": {"model__dtype": "bfloat16"},
    "float32_32bit": {"model__dtype": "float32"},
    "float32_adapter": {"model__dtype": "float32", "adapter__rank": 8, "update__learning_rate": 1e-4},
    "float32_adapter_small": {
        "model__dtype": "float32",
        "adapter__rank": 8,
        "update__learning_rate": 1e-4,
        "update__micro_batch_tokens": 1024,
        "rollout__max_num_seqs": 64,
    },
    "bfloat16_8bit_checkpointing": {
        "model__dtype": "bfloat16",
        "update__optimizer_state": "8-bit",
        "update__activation_checkpointing": True,
    },
}

if __name__ == "__main__":
    cuda = torch.cuda.is_available()
    parts: dict[str, Callable[[argparse.Namespace], Figures]] = (
        {f"cap_{gb}": lambda a, gb=gb: under_a_cap(gb) for gb in (48, 36, 24)}
        if cuda
        else {name: lambda a, values=values: on_cpu(a, **values) for name, values in CPU_SETTINGS.items()}
        | {"arithmetic": arithmetic}
    )
    run("memory", parts, lines, flags=("tiny",))
