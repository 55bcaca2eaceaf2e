"""Draw the README's picture from run directories: accuracy and reward over the steps.

    python docs/plot.py runs/seed-0 runs/seed-1 runs/seed-2 --to docs/quickstart.png

Needs the extra "plot". The figures that it draws are read from evals.jsonl and steps.jsonl alone.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from reinforce_lite.runlog import Run, find

COLOURS = {"strict": "#0b6e4f", "lenient": "#c8741a"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    runs = [find(name) for name in args.runs]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=[1.5, 1])
    training(left, runs)
    test(right, runs)
    figure.tight_layout()
    figure.savefig(args.to, dpi=140)


def training(axes: plt.Axes, runs: list[Run]) -> None:
    """The training reward of every step (faint) and validation accuracy."""
    for run in runs:
        axes.plot([s["step"] for s in run.steps], [s["reward"] for s in run.steps], color="#999", lw=0.7)
        rows = [e for e in run.evals if e["split"] == "validation"]
        for kind, colour in COLOURS.items():
            style = "o-" if kind == "strict" else "o:"
            axes.plot([e["step"] for e in rows], [e[kind] for e in rows], style, color=colour, ms=3, lw=1.2)
    for kind, colour in COLOURS.items():
        axes.plot([], [], "o-", color=colour, ms=3, label=f"{kind} accuracy, validation")
    axes.plot([], [], color="#999", lw=0.7, label="mean reward of the step's answers")
    axes.set(xlabel="step", ylim=(0, 1), title=f"{len(runs)} seed{'s' * (len(runs) > 1)}")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(alpha=0.2)


def test(axes: plt.Axes, runs: list[Run]) -> None:
    """Test accuracy before and after with its 95% interval, a bar a seed."""
    for k, kind in enumerate(COLOURS):
        for w, when in enumerate(("before", "after")):
            for r, run in enumerate(runs):
                found = run.summary["evals"][when]
                x = k * 2.4 + w + 0.8 * (r - (len(runs) - 1) / 2) / len(runs)
                low, high = found[f"{kind}_interval"]
                axes.bar(x, found[kind], 0.7 / len(runs), color=COLOURS[kind], alpha=1.0 if w else 0.35)
                axes.vlines(x, low, high, color="black", lw=0.8)
    n = runs[0].summary["evals"]["after"]["n"]
    axes.set_xticks(
        [0, 1, 2.4, 3.4], ["strict\nbefore", "strict\nafter", "lenient\nbefore", "lenient\nafter"]
    )
    axes.set(ylim=(0, 1), title=f"{n} unseen test problems")
    axes.grid(alpha=0.2, axis="y")


if __name__ == "__main__":
    main()
