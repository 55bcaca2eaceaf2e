"""What a graphics card reaches with a 3B model: correctness, decode, update, whole steps, the quickstart.

python benchmarks/gpu.py                       # all parts that need no network, about 20 minutes
python benchmarks/gpu.py decode "train full rank8"     # some of them; a part's arguments are quoted with it
python benchmarks/gpu.py --table               # the table of the figures so far
python benchmarks/gpu.py --tiny correct graph  # a tiny model, on a CPU too: tries the benchmark itself

Each part runs in a process of its own with its own time limit. Its figures go to results.jsonl in --out as
soon as they are known, the output to log.txt, and at the end table.md has a row for each of the main figures:
what was not measured says so. Weights are random with Qwen2.5-3B's shape, except in `train` and `gsm8k`. vLLM
runs where it is installed.

A machine that is rented by the call and has no network runs `call1`, then `call2`; card/prepare.sh collects
what it lacks.
"""

import argparse
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results" / "gpu"
PARTS = {
    "smoke": ("machine", 60),
    "correct": ("correctness", 60),
    "kernels": ("kernels", 60),
    "graph": ("decoding", 90),
    "decode": ("decoding", 75),
    "update": ("updating", 75),
    "optimizer": ("updating", 75),
    "step": ("steps", 90),
    "article": ("steps", 60),
    "generate": ("decoding", 45),
    "vllm": ("decoding", 150),
    "cap24": ("steps", 110),
    "adapter12": ("steps", 180),
    "train": ("training", 240),
    "gsm8k": ("training", 300),
    "keep": ("training", 30),
    "tests": ("machine", 150),
}
"""The module in card/ that has the part, and its limit in seconds. The most expensive come last."""
NEEDS_MORE = ("gsm8k", "keep", "tests")
"""Not run by default: a model from a hub, files, the test suite."""
CALLS = {
    "call1": ["smoke", "correct", "graph", "decode", "optimizer", "cap24", "adapter12"],
    "call2": ["train full rank8 rank8-fast", "update", "step", "article", "kernels"],
}
TINY_FACTOR = 4
"""How much longer a part may take on a CPU."""


def run_parts(parts: Sequence[str], out: Path, tiny: bool) -> bool:
    """Run each part in a process of its own; return whether all succeeded."""
    failed = []
    log = out / "log.txt"
    for part in parts:
        name = shlex.split(part)[0]
        limit = PARTS[name][1] * (TINY_FACTOR if tiny else 1)
        start, before = time.perf_counter(), log.stat().st_size if log.exists() else 0
        environment = os.environ | {"PART": part, "OUT": str(out), "LIMIT": str(limit)}
        environment |= {"TINY": "1"} if tiny else {}
        with log.open("a") as file:
            print(f"== {part}", file=file, flush=True)
            process = subprocess.Popen(
                [sys.executable, __file__, "--in-process"],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            try:
                status: int | str = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = "timeout"
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that the part started
                process.wait()
        print(f"== {part}: status {status}, {time.perf_counter() - start:.0f} s", flush=True)
        text = log.read_bytes()[before:].decode(errors="replace")
        figures = [line[:400] for line in text.splitlines() if line.startswith("{")]
        print("\n".join(figures) if status == 0 else text[-1500:], flush=True)
        failed += [part] if status != 0 else []
    return not failed


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; call1 or call2: several")
    parser.add_argument("--tiny", action="store_true", help="a tiny model")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", RESULTS)), help="folder")
    arguments = parser.parse_args()
    parts = [part for name in arguments.parts for part in CALLS.get(name, [name])]
    parts = parts or [part for part in PARTS if part not in NEEDS_MORE]
    if unknown := [part for part in parts if shlex.split(part)[0] not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if not (arguments.tiny or arguments.table or torch.cuda.is_available()):
        parser.error("there is no GPU: --tiny tries the benchmark on a CPU")
    arguments.out.mkdir(parents=True, exist_ok=True)
    succeeded = arguments.table or run_parts(parts, arguments.out.resolve(), arguments.tiny)
    table = importlib.import_module("card.table").write(arguments.out)
    print(table)
    sys.exit(not succeeded)


if __name__ == "__main__":
    if sys.argv[1:] == ["--in-process"]:
        name, *given = shlex.split(os.environ["PART"])
        getattr(importlib.import_module(f"card.{PARTS[name][0]}"), name)(*given)
    else:
        main()
