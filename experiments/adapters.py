"""The quickstart with adapters of rank 1, 8 and 32, three seeds each, beside the kept seeds of full tuning.

    python experiments/adapters.py --parallel 2

An adapter's step is faster. So each run stops where full tuning does, is evaluated on the test problems, and
continues for as many steps as full tuning's time allows. Rank 8 also runs at half and at twice the learning
rate: the validation problems choose between the three.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import trials
from trials import Record, Trial

from reinforce_lite.runlog.run import Run

RANKS = (1, 8, 32)
SEEDS = range(3)
LEARNING_RATE = "1e-4"
OTHER_RATES = ("2e-4", "5e-5")
STEPS = 24
"""Those of the quickstart."""
LONGER = 27
"""What an adapter takes in the time of the quickstart's steps (benchmarks/step.py)."""


def make_trial(rank: int, learning_rate: str, seed: int) -> Trial:
    """A run of this file; the name of a setting tells the learning rate where it is not LEARNING_RATE."""
    setting = f"rank{rank}" if learning_rate == LEARNING_RATE else f"rank{rank}-{learning_rate}"
    options = ("--rank", str(rank), "--seed", str(seed), "--learning-rate", learning_rate)
    return Trial(f"{setting}-{seed}", options, "adapters.py")


TRIALS = [
    make_trial(rank, rate, seed)
    for rank, rate in [
        (8, LEARNING_RATE),
        *((8, rate) for rate in OTHER_RATES),
        (1, LEARNING_RATE),
        (32, LEARNING_RATE),
    ]
    for seed in SEEDS
]


def train(name: str, rank: int, seed: int, learning_rate: float) -> Record:
    """Train to STEPS and evaluate, then to LONGER and evaluate; the record of the whole run."""
    program = [sys.executable, "-m", "reinforce_lite", "train"]
    run = f"adapters-{name}"
    options = ("--adapter.rank", str(rank), "--update.learning-rate", str(learning_rate))
    command = [*program, "quickstart", *options, "--train.seed", str(seed), "--run", run, "--resume"]
    for steps in (STEPS, LONGER):
        subprocess.run([*command, "--train.steps", str(steps)], check=True)
    return trials.record_run(Run(Path("runs") / run))


def write(records: Mapping[str, Record]) -> None:
    """A row for each setting with all seeds: accuracies of the seeds, and the difference from full tuning."""
    full = list(trials.read_records("seeds", [Trial(f"seed-{seed}", ()) for seed in SEEDS]).values())
    by_setting = trials.by_setting(records)
    groups = {f"rank {rank}": by_setting.get(f"rank{rank}", []) for rank in RANKS}
    groups = {name: runs for name, runs in groups.items() if len(runs) == len(SEEDS)}
    parts = []
    for title, step in (("equal steps", STEPS), ("equal minutes", LONGER)):
        accuracies = {
            kind: {"all weights": [fmean(trials.correct(run, STEPS, kind)) for run in full]}
            | {
                name: [fmean(trials.correct(run, step, kind)) for run in runs]
                for name, runs in groups.items()
            }
            for kind in trials.KINDS
        }
        gaps = trials.differences(accuracies["strict"], "all weights")
        rows = [
            [
                name,
                str(STEPS if name == "all weights" else step),
                *(f"{value:.1%}" for value in strict),
                f"{fmean(strict):.1%}",
                f"{fmean(accuracies['lenient'][name]):.1%}",
                gaps.get(name, ""),
                f"{max(run['peak_memory_bytes'] for run in [full, *groups.values()][i]) / 1e9:.1f} GB",
            ]
            for i, (name, strict) in enumerate(accuracies["strict"].items())
        ]
        header = ["trained", "steps", *(f"strict, seed {s}" for s in SEEDS)]
        header += ["mean", "lenient, mean", "strict against all weights, points", "memory, at most"]
        parts.append(f"At {title}:\n\n" + trials.table(header, rows))
    rates = {LEARNING_RATE: "rank8"} | {rate: f"rank8-{rate}" for rate in OTHER_RATES}
    header = ["learning rate of rank 8", *(f"seed {s}" for s in SEEDS), "mean"]
    rows = []
    for rate, setting in sorted(rates.items(), key=lambda item: float(item[0])):
        strict = [trials.validation(run)[STEPS] for run in by_setting.get(setting, [])]
        if len(strict) == len(SEEDS):
            rows.append([rate, *(f"{value:.1%}" for value in strict), f"{fmean(strict):.1%}"])
    parts.append(f"Strict on the validation problems after {STEPS} steps:\n\n" + trials.table(header, rows))
    runs = [run for group in by_setting.values() for run in group]
    trials.write_page("adapters", *parts, *trials.machine_lines([*full, *runs]))


if __name__ == "__main__":
    if "--out" not in sys.argv:
        trials.main("adapters", TRIALS, write)
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--rank", type=int, required=True)
        parser.add_argument("--seed", type=int, required=True)
        parser.add_argument("--learning-rate", type=float, required=True)
        parser.add_argument("--out", type=Path, required=True)
        given = parser.parse_args()
        name = given.out.stem
        record = {"trial": name} | train(name, given.rank, given.seed, given.learning_rate)
        given.out.write_text(trials.dump_json(record), encoding="utf-8")
