"""What each part of the method gains: the quickstart with another preset, or with one part changed.

    python experiments/parts.py --parallel 2

Equal numbers of completions (groups of ten: 60 a step instead of 64), three seeds each; then three fresh
seeds of the best setting and of the base. The intervals of the differences are Dunnett's: see
`trials.differences`. The base is the unchanged quickstart.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import matplotlib.pyplot as plt
import trials
from trials import Record, Trial

BASE = "reinforce-lite"
BEST = "groups of 4"
SEEDS = range(3)
FRESH = range(3, 6)
SETTINGS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "article": ("--objective.preset", "article"),
    "rloo": ("--objective.preset", "rloo"),
    "grpo": ("--objective.preset", "grpo"),
    "dr-grpo": ("--objective.preset", "dr-grpo"),
    "monte-carlo": ("--objective.preset", "monte-carlo"),
    "one gradient": ("--objective.gradient-samples", "one"),
    "no clamp": ("--objective.advantage-clip", "none"),
    "log-probability at 1": ("--objective.logprob-temperature", "1"),
    BEST: ("--rollout.group-size", "4", "--rollout.prompts-per-step", "16"),
    "groups of 16": ("--rollout.group-size", "16", "--rollout.prompts-per-step", "4"),
    "groups of 10": ("--rollout.group-size", "10", "--rollout.prompts-per-step", "6"),
}


def label(name: str, seed: int) -> str:
    """The name of a trial."""
    return f"{name.replace(' ', '-')}-{seed}"


TRIALS = [
    Trial(label(name, seed), ("quickstart", "--train.seed", str(seed), *SETTINGS[name]))
    for names, seeds in ((SETTINGS, SEEDS), ((BASE, BEST), FRESH))
    for name in names
    for seed in seeds
]


def write(records: Mapping[str, Record]) -> None:
    """Settings with missing seeds are omitted."""
    by_setting, fresh = complete(records, SETTINGS, SEEDS), complete(records, (BASE, BEST), FRESH)
    if BASE not in by_setting:
        return
    parts = [_table(by_setting, SEEDS)]
    if BEST in by_setting and len(fresh) == 2:
        both = {name: trials.final_accuracies(by_setting[name] + fresh[name]) for name in fresh}
        parts += [_table(fresh, FRESH)]
        parts += [
            f"Over all six seeds, {BEST} against {BASE}: {trials.differences(both, BASE)[BEST]} points.\n"
        ]
    trials.write_page("parts", *parts)
    _plot(by_setting)


def complete(
    records: Mapping[str, Record], names: Iterable[str], seeds: Iterable[int]
) -> dict[str, list[Record]]:
    """The records of those settings that have all `seeds`."""
    wanted = {name: [label(name, seed) for seed in seeds] for name in names}
    return {
        name: [records[run] for run in runs] for name, runs in wanted.items() if records.keys() >= set(runs)
    }


def _table(by_setting: Mapping[str, list[Record]], seeds: Sequence[int]) -> str:
    differences = trials.differences(
        {name: trials.final_accuracies(runs) for name, runs in by_setting.items()}, BASE
    )
    rows = []
    for name, runs in by_setting.items():
        no_signal = fmean(fmean(r["curves"]["frac_reward_zero_std"]) for r in runs)
        accuracies = trials.final_accuracies(runs)
        cells = [f"{accuracy:.1%}" for accuracy in (*accuracies, fmean(accuracies))]
        entropy = fmean(fmean(r["curves"]["entropy"][-5:]) for r in runs)
        rows.append([name, *cells, differences.get(name, ""), f"{no_signal:.0%}", f"{entropy:.2f}"])
    header = ["", *(f"seed {s}" for s in seeds), "mean", f"against {BASE}, points (95%)"]
    return trials.table([*header, "no-signal groups", "entropy, last 5"], rows)


def _plot(by_setting: Mapping[str, list[Record]]) -> None:
    columns = 4
    rows = math.ceil(len(by_setting) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(11, 2.4 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(by_setting) :]:
        axis.set_axis_off()
    for axis, (name, runs) in zip(axes.flat, by_setting.items(), strict=False):
        for run in runs:
            values = trials.smooth(run["curves"]["accuracy/strict"])
            axis.plot(range(1, len(values) + 1), values, linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    figure.supxlabel("step")
    figure.supylabel("strict accuracy of the sampled completions, mean of 5 steps")
    trials.save_figure("parts", figure)


if __name__ == "__main__":
    trials.main("parts", TRIALS, write)
