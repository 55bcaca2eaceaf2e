"""Whether this state of the code is slower than another: they do the same job in turns, on one machine.

    git worktree add ../before 5de76ba
    python benchmarks/compare.py ../before rollout.native update.ours_quickstart

A job is what a part of a benchmark times. Each state runs its own version of it, in a process of its own that
waits while the other works. Of two processes the one that started last can be faster by some percent, so the
states take turns at that too.
"""

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import geometric_mean

NOW = Path(__file__).parent.parent
WORKER = """
import argparse, importlib, sys, time

def wait_and_time(job, **_):
    job()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        job()
        print("seconds", time.perf_counter() - start, flush=True)
    sys.exit()

sys.path[:0] = ["src", "benchmarks"]
benchmark, part, dtype = sys.argv[1:]
module = importlib.import_module(benchmark)
module.timed = wait_and_time
getattr(module, part)(argparse.Namespace(dtype=dtype))
"""


class Worker:
    """A process with a checkout's job, ready to do it."""

    def __init__(self, checkout: Path, benchmark: str, part: str, dtype: str, stack: ExitStack) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, benchmark, part, dtype],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        assert process.stdout
        self.input, self.output = process.stdin, process.stdout
        stack.callback(process.wait)
        stack.callback(process.kill)
        self._read("ready")

    def seconds(self) -> float:
        """Do the job once."""
        self.input.write("\n")
        self.input.flush()
        return float(self._read("seconds"))

    def _read(self, label: str) -> str:
        for line in self.output:
            if line.startswith(label):
                return line.removeprefix(label)
        sys.exit("a process ended early: see its error above, or the part does not use `timed`")


def compare(before: Path, job: str, dtype: str, turns: int, now_first: bool) -> list[float]:
    """The time of this state over that of the one before, in each turn of a pair of new processes."""
    benchmark, part = job.split(".")
    order = [NOW, before] if now_first else [before, NOW]
    ratios = []
    with ExitStack() as stack:
        workers = {checkout: Worker(checkout, benchmark, part, dtype, stack) for checkout in order}
        for turn in range(turns):
            seconds = {c: workers[c].seconds() for c in (order if turn % 2 else reversed(order))}
            print(f"{job}: {seconds[before]:.3f} s before, {seconds[NOW]:.3f} s now", flush=True)
            ratios.append(seconds[NOW] / seconds[before])
    return ratios


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=lambda p: Path(p).resolve(), help="a checkout of another state")
    parser.add_argument("jobs", nargs="+", metavar="BENCHMARK.PART")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of processes (an even number)")
    parser.add_argument("--turns", type=int, default=4, help="of each pair")
    arguments = parser.parse_args()
    for job in arguments.jobs:
        means = [
            geometric_mean(compare(arguments.before, job, arguments.dtype, arguments.turns, pair % 2 == 1))
            for pair in range(arguments.pairs)
        ]
        each = ", ".join(f"{mean:.3f}" for mean in means)
        print(f"{job}: now / before {geometric_mean(means):.3f} (pairs: {each})")


if __name__ == "__main__":
    main()
