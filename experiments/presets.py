"""The presets over longer runs: 100 steps of the quickstart with each, three seeds.

    python experiments/presets.py --parallel 2

What 24 steps can't show: whether accuracy continues to rise, stays or collapses, and what happens to entropy.
A run counts as collapsed if its last accuracy on validation is below the 95% interval of its best one.
"""

from collections.abc import Mapping
from statistics import fmean

import matplotlib.pyplot as plt
import trials
from trials import Record, Trial

from reinforce_lite.evaluation.statistics import wilson_interval

BASE = "reinforce-lite"
UNEVEN = "article"
"""Has no interval: one of its seeds lost what the model could do, so its spread is not that of the others,
which their intervals assume."""
PRESETS = (BASE, UNEVEN, "grpo", "dr-grpo", "rloo")
SEEDS = range(3)
LENGTH = ("--train.steps", "100", "--eval.every", "10", "--eval.validation-n", "100", "--eval.n", "200")
LAST = 5
"""Steps over which entropy is averaged, at both ends."""
TRIALS = [
    Trial(
        f"{preset}-{seed}",
        ("quickstart", "--objective.preset", preset, "--train.seed", str(seed), *LENGTH),
    )
    for seed in SEEDS
    for preset in PRESETS
]


def has_collapsed(run: Record) -> bool:
    """Whether the last accuracy on validation is below the interval of the best one."""
    by_step = trials.validation(run)
    n = next(e["n"] for e in run["evals"] if e["split"] == "validation")
    low, _ = wilson_interval(round(max(by_step.values()) * n), n)
    return by_step[max(by_step)] < low


def write(records: Mapping[str, Record]) -> None:
    """A row for each preset. Those with all seeds and the spread of the base are compared with it."""
    by_setting = trials.by_setting(records)
    groups = {p: by_setting[p] for p in PRESETS if p in by_setting}
    accuracies = {preset: trials.final_accuracies(runs) for preset, runs in groups.items()}
    complete = {p: a for p, a in accuracies.items() if len(a) == len(SEEDS) and p != UNEVEN}
    gaps = trials.differences(complete, BASE) if BASE in complete else {}
    rows = []
    for preset, runs in groups.items():
        entropies = [run["curves"]["entropy"] for run in runs]
        by_seed = {trials.seed_of(run): f"{a:.1%}" for run, a in zip(runs, accuracies[preset], strict=True)}
        best = [max(trials.validation(run).values()) for run in runs]
        last = [trials.validation(run)[max(trials.validation(run))] for run in runs]
        rows.append(
            [
                preset,
                *(by_seed.get(str(seed), "") for seed in SEEDS),
                gaps.get(preset, ""),
                f"{fmean(trials.final_accuracies(runs, 'lenient')):.1%}",
                f"{fmean(best):.1%}",
                f"{fmean(last):.1%}",
                f"{sum(map(has_collapsed, runs))} of {len(runs)}",
                f"{fmean(fmean(e[:LAST]) for e in entropies):.2f}",
                f"{fmean(fmean(e[-LAST:]) for e in entropies):.2f}",
            ]
        )
    header = [
        "preset",
        *(f"strict, seed {seed}" for seed in SEEDS),
        f"against {BASE}, points",
        "lenient, mean",
        "validation, best",
        "validation, last",
        "collapsed",
        f"entropy, first {LAST}",
        f"entropy, last {LAST}",
    ]
    trials.write_page("presets", trials.table(header, rows), *trials.machine_lines(records.values()))
    _plot(groups)


def _plot(groups: Mapping[str, list[Record]]) -> None:
    figure, (accuracy, entropy) = plt.subplots(1, 2, figsize=(11, 3.5))
    for number, (preset, runs) in enumerate(groups.items()):
        for run in runs:
            by_step, color = trials.validation(run), f"C{number}"
            label = preset if run is runs[0] else None
            accuracy.plot(list(by_step), list(by_step.values()), color=color, linewidth=1, label=label)
            values = trials.smooth(run["curves"]["entropy"])
            entropy.plot(range(1, len(values) + 1), values, color=color, linewidth=1)
    accuracy.set_ylabel("strict accuracy on validation")
    entropy.set_ylabel("entropy in nats, mean of 5 steps")
    for axis in (accuracy, entropy):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    accuracy.legend()
    trials.save_figure("presets", figure)


if __name__ == "__main__":
    trials.main("presets", TRIALS, write)
