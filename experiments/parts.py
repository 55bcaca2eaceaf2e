"""What each part of the method buys: the quickstart with one part of the objective or of the group changed.

    python experiments/parts.py --at-once 2

Equal numbers of answers, three seeds each. The differences are taken seed by seed, since a seed has the same
problems in the same order.
"""

import math
from collections.abc import Mapping
from statistics import fmean

import matplotlib.pyplot as plt
import trials
from trials import Kept, Trial

BASE = "reinforce-lite"
SEEDS = range(3)
SETTINGS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "article": ("--objective.preset", "article"),
    "rloo": ("--objective.preset", "rloo"),
    "grpo": ("--objective.preset", "grpo"),
    "dr-grpo": ("--objective.preset", "dr-grpo"),
    "monte-carlo": ("--objective.preset", "monte-carlo"),
    "no clamp": ("--objective.clamp", "none"),
    "log-probability at 1": ("--objective.logprob-temperature", "1"),
    "groups of 4": ("--rollout.samples-per-prompt", "4", "--rollout.prompts-per-step", "16"),
    "groups of 16": ("--rollout.samples-per-prompt", "16", "--rollout.prompts-per-step", "4"),
    "groups of 10": ("--rollout.samples-per-prompt", "10", "--rollout.prompts-per-step", "6"),  # 60 answers
}
TRIALS = [
    Trial(f"{name.replace(' ', '-')}-{seed}", ("quickstart", "--train.seed", str(seed), *options))
    for name, options in SETTINGS.items()
    for seed in SEEDS
]


def write(kept: Mapping[str, Kept]) -> None:
    """Settings of which not all seeds are there are left out."""
    by_name = trials.by_seed(kept)
    found = {name: by_name.get(name.replace(" ", "-"), []) for name in SETTINGS}
    found = {name: runs for name, runs in found.items() if len(runs) == len(SEEDS)}
    if BASE in found:
        trials.write("parts", trials.table(*_table(found)))
        _plot(found)


def _table(found: Mapping[str, list[Kept]]) -> tuple[list[str], list[list[str]]]:
    ends = {name: [fmean(trials.right(r, -1)) for r in runs] for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        lenient = fmean(fmean(trials.right(r, -1, "lenient")) for r in runs)
        middle, half = trials.mean([a - b for a, b in zip(ends[name], ends[BASE], strict=True)])
        against = f"{100 * middle:+.1f} ({100 * (middle - half):+.0f} to {100 * (middle + half):+.0f})"
        idle = fmean(fmean(r["curves"]["frac_reward_zero_std"]) for r in runs)
        cells = [*(f"{end:.1%}" for end in ends[name]), f"{fmean(ends[name]):.1%}", f"{lenient:.1%}"]
        rows.append([name, *cells, "" if name == BASE else against, f"{idle:.0%}"])
    header = ["", *(f"seed {s}" for s in SEEDS), "mean", "lenient", f"against {BASE}, points (95%)"]
    return [*header, "equal groups"], rows


def _plot(found: Mapping[str, list[Kept]]) -> None:
    columns = 4
    rows = math.ceil(len(found) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(11, 2.4 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis, (name, runs) in zip(axes.flat, found.items(), strict=False):
        for run in runs:
            values = trials.smooth(run["curves"]["accuracy/strict"])
            axis.plot(range(1, len(values) + 1), values, linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    figure.supxlabel("step")
    figure.supylabel("strict accuracy of the sampled answers, mean of 5 steps")
    trials.save("parts", figure)


if __name__ == "__main__":
    trials.main("parts", TRIALS, write)
