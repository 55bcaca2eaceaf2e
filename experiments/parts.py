"""What each part of the method buys: the quickstart with another preset, or with one part of the objective or
of the group changed.

    python experiments/parts.py --at-once 2

Equal numbers of answers (groups of ten: 60 a step instead of 64), three seeds each; then three fresh seeds of
the setting that came out best, beside the base. The intervals of the differences are Dunnett's: see
`trials.against`. The base is the quickstart as it is, and so its seeds are the README's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import matplotlib.pyplot as plt
import trials
from trials import Kept, Trial

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
    return f"{name.replace(' ', '-')}-{seed}"


TRIALS = [
    Trial(label(name, seed), ("quickstart", "--train.seed", str(seed), *SETTINGS[name]))
    for names, seeds in ((SETTINGS, SEEDS), ((BASE, BEST), FRESH))
    for name in names
    for seed in seeds
]


def write(kept: Mapping[str, Kept]) -> None:
    """Settings of which not all seeds are there are left out."""
    found, fresh = complete(kept, SETTINGS, SEEDS), complete(kept, (BASE, BEST), FRESH)
    if BASE not in found:
        return
    parts = [_table(found, SEEDS)]
    if BEST in found and len(fresh) == 2:
        both = {name: trials.ends(found[name] + fresh[name]) for name in fresh}
        parts += [_table(fresh, FRESH)]
        parts += [f"Over all six seeds, {BEST} against {BASE}: {trials.against(both, BASE)[BEST]} points.\n"]
    trials.write("parts", *parts)
    base = [trials.learned(run) for run in (*found[BASE], *fresh.get(BASE, []))]
    trials.write("seeds", trials.table(trials.LEARNED, base))
    _plot(found)


def complete(kept: Mapping[str, Kept], names: Iterable[str], seeds: Iterable[int]) -> dict[str, list[Kept]]:
    """The runs of those settings of which all `seeds` are kept."""
    wanted = {name: [label(name, seed) for seed in seeds] for name in names}
    return {name: [kept[run] for run in runs] for name, runs in wanted.items() if kept.keys() >= set(runs)}


def _table(found: Mapping[str, list[Kept]], seeds: Sequence[int]) -> str:
    differences = trials.against({name: trials.ends(runs) for name, runs in found.items()}, BASE)
    rows = []
    for name, runs in found.items():
        idle = fmean(fmean(r["curves"]["frac_reward_zero_std"]) for r in runs)
        means = (fmean(trials.ends(runs, kind)) for kind in trials.KINDS)
        cells = [f"{accuracy:.1%}" for accuracy in (*trials.ends(runs), *means)]
        entropy = fmean(fmean(r["curves"]["entropy"][-5:]) for r in runs)
        rows.append([name, *cells, differences.get(name, ""), f"{idle:.0%}", f"{entropy:.2f}"])
    header = ["", *(f"seed {s}" for s in seeds), "mean", "lenient", f"against {BASE}, points (95%)"]
    return trials.table([*header, "equal groups", "entropy, last 5"], rows)


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
