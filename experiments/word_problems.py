"""Word problems of one and of two steps, and whether the one helps with the other.

    python experiments/word_problems.py --at-once 2

Level 1 is the quickstart with more steps; level 2 has worked examples of two steps (level2.toml). Level 2 is
learned by the untrained model, and by those that level 1 has trained. What these make of its test problems
before their first step is transfer.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import trials
from trials import Kept, Trial

from reinforce_lite import evaluation

LEVEL2 = "experiments/level2.toml"
SEEDS = range(3)
KINDS = ("strict", "lenient")
STEPS = 36
TITLES = {"level1": "level 1", "level2": "level 2", "level2-after-level1": "level 2, after level 1"}


def trial(level: str, recipe: str, seed: int, after: str = "") -> Trial:
    options = (recipe, "--train.seed", str(seed), "--train.steps", str(STEPS))
    return Trial(f"{level}-{seed}", options, after=after, leaves_model=level == "level1")


TRIALS = [
    *(trial("level1", "quickstart", seed) for seed in SEEDS),
    *(trial("level2", LEVEL2, seed) for seed in SEEDS),
    *(trial("level2-after-level1", LEVEL2, seed, f"level1-{seed}") for seed in SEEDS),
]


def write(kept: Mapping[str, Kept]) -> None:
    found = trials.by_seed(kept)
    rows = [[TITLES[level], *_row(run)] for level, runs in found.items() for run in runs]
    header = ["trained on", "seed", "strict before", "strict after", "lenient before", "lenient after"]
    parts = [trials.table([*header, "p (paired)", "minutes"], rows)]
    if "level2" in found and "level2-after-level1" in found:
        parts += [_transfer(found["level2"][0], found["level2-after-level1"])]
    trials.write("word_problems", *parts)
    _plot(found)


def _row(run: Kept) -> list[str]:
    when = [(kind, step) for kind in KINDS for step in (0, -1)]
    cells = [trials.share(trials.right(run, step, kind)) for kind, step in when]
    p = max(evaluation.paired_p(trials.right(run, 0, kind), trials.right(run, -1, kind)) for kind in KINDS)
    return [run["trial"][-1], *cells, f"{p:.0e}", f"{run['seconds'] / 60:.1f}"]


def _transfer(untrained: Kept, runs: Sequence[Kept]) -> str:
    """Level 2's test problems before anything was learned of level 2."""
    rows = [["untrained", "", *(trials.share(trials.right(untrained, 0, k)) for k in KINDS), ""]]
    for run in runs:
        shares = [trials.share(trials.right(run, 0, kind)) for kind in KINDS]
        p = [evaluation.paired_p(trials.right(untrained, 0, k), trials.right(run, 0, k)) for k in KINDS]
        rows.append(["trained on level 1", run["trial"][-1], *shares, f"{max(p):.0e}"])
    return trials.table(["level 2's test problems", "seed", "strict", "lenient", "p (paired)"], rows)


def _plot(found: Mapping[str, list[Kept]]) -> None:
    figure, axes = plt.subplots(len(found), 2, figsize=(10, 3.1 * len(found)), sharey=True, squeeze=False)
    for row, (level, runs) in zip(axes, found.items(), strict=True):
        for run in runs:
            spent, minutes = 0.0, []
            for seconds in run["curves"]["step_time"]:
                spent += seconds
                minutes.append(spent / 60)
            curves = {k: trials.smooth(run["curves"][f"accuracy/{k}"]) for k in KINDS}
            for axis, x in zip(row, (range(1, len(minutes) + 1), minutes), strict=True):
                (line,) = axis.plot(x, curves["strict"], linewidth=1.2, label=f"seed {run['trial'][-1]}")
                axis.plot(x, curves["lenient"], linewidth=0.8, linestyle=":", color=line.get_color())
        row[0].set_ylabel(TITLES[level])
    axes[-1][0].set_xlabel("step")
    axes[-1][1].set_xlabel("minutes in training steps")
    axes[0][0].legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.suptitle(
        "accuracy of the sampled answers, mean of 5 steps: strict, and lenient (dotted)", fontsize=10
    )
    trials.save("word_problems", figure)


if __name__ == "__main__":
    trials.main("word_problems", TRIALS, write)
