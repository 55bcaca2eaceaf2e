"""Word problems of one and of two steps on three seeds, and whether the one helps with the other.

    python experiments/word_problems.py --at-once 2

Level 1 is the quickstart with more steps; level 2 has worked examples of two steps (level2.toml). The models
that were trained on level 1 then answer level 2's test problems, with level 2's prompt: that is transfer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import trials
from trials import Kept, Trial

from reinforce_lite import config, evaluation
from reinforce_lite.runlog import Run

LEVEL2 = Path(__file__).with_name("level2.toml")
SEEDS = range(3)
STEPS = 36
RECIPES = {"level1": "quickstart", "level2": str(LEVEL2)}
SHAPE = ("--train.steps", str(STEPS), "--eval.every", "12")
TRIALS = [
    Trial(f"{level}-{seed}", (recipe, "--train.seed", str(seed), *SHAPE))
    for seed in SEEDS
    for level, recipe in RECIPES.items()
]


def keep(run: Run) -> Kept:
    """A run, and for level 1 its model's verdicts on level 2."""
    kept = trials.of_run(run)
    if run.config.task.level == 1:
        level2 = config.load(str(LEVEL2), {"model.name": str(run.path / "model")})
        kept["transfer"] = trials.verdicts(trials.tested(level2, STEPS))
    return kept


def write(kept: Mapping[str, Kept]) -> None:
    found = trials.by_seed(kept)
    rows: list[list[str]] = []
    for level, runs in found.items():
        rows += [[_title(level), *_row(run)] for run in runs]
    header = ["trained on", "seed", "strict before", "strict after", "lenient before", "lenient after"]
    parts = [trials.table([*header, "p (paired)", "minutes"], rows)]
    if transfer := [run for run in found.get("level1", []) if "transfer" in run]:
        untrained = next(iter(found.get("level2", [])), None)
        parts += ["Level 2's test problems, answered by the models that were trained on level 1:\n"]
        header = ["seed", "strict", "lenient", "untrained, strict", "p"]
        parts += [trials.table(header, _moved(transfer, untrained))]
    trials.write("word_problems", *parts)
    _plot(found)


def _title(level: str) -> str:
    return f"{level[:-1]} {level[-1]}"


def _row(run: Kept) -> list[str]:
    when = [(kind, step) for kind in ("strict", "lenient") for step in (0, -1)]
    cells = [trials.share(trials.right(run, step, kind)) for kind, step in when]
    p = max(
        evaluation.paired_p(trials.right(run, 0, kind), trials.right(run, -1, kind))
        for kind in ("strict", "lenient")
    )
    return [run["trial"][-1], *cells, f"{p:.0e}", f"{run['seconds'] / 60:.1f}"]


def _moved(runs: Sequence[Kept], untrained: Kept | None) -> list[list[str]]:
    rows = []
    for run in runs:
        moved = {"verdicts": run["transfer"]}
        row = [run["trial"][-1], *(trials.share(trials.right(moved, -1, k)) for k in ("strict", "lenient"))]
        if untrained:
            before = trials.right(untrained, 0)
            row += [trials.share(before), f"{evaluation.paired_p(before, trials.right(moved, -1)):.2g}"]
        rows.append(row)
    return rows


def _plot(found: Mapping[str, list[Kept]]) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), sharey=True)
    for row, (level, runs) in zip(axes, found.items(), strict=False):
        for run in runs:
            spent, minutes = 0.0, []
            for seconds in run["curves"]["step_time"]:
                spent += seconds
                minutes.append(spent / 60)
            curves = {k: trials.smooth(run["curves"][f"accuracy/{k}"]) for k in ("strict", "lenient")}
            for axis, x in zip(row, (range(1, len(minutes) + 1), minutes), strict=True):
                (line,) = axis.plot(x, curves["strict"], linewidth=1.2, label=f"seed {run['trial'][-1]}")
                axis.plot(x, curves["lenient"], linewidth=0.8, linestyle=":", color=line.get_color())
        row[0].set_ylabel(_title(level))
    axes[1][0].set_xlabel("step")
    axes[1][1].set_xlabel("minutes in training steps")
    axes[0][0].legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.suptitle(
        "accuracy of the sampled answers, mean of 5 steps: strict, and lenient (dotted)", fontsize=10
    )
    trials.save("word_problems", figure)


if __name__ == "__main__":
    trials.main("word_problems", TRIALS, write, keep)
