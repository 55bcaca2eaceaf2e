"""Word problems of one and of two steps, and whether learning the first helps with the second.

    python experiments/word_problems.py --parallel 2

Level 1 is the quickstart with more steps; level 2 has worked examples of two steps (level2.toml). Level 2
is trained from the untrained model and from the models that level 1 has trained. The accuracy of the latter
on level 2's test problems before their first step is transfer.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import trials
from trials import Record, Trial

from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.runlog.run import Run

SEEDS = range(3)
STEPS = 36
RECIPES = {"level1": "quickstart", "level2": "experiments/level2.toml"}
MOST_FREQUENT = 5
OPERATION = re.compile(r"\d ([-+*/]) \d+ =")
TITLES = {"level1": "level 1", "level2": "level 2", "level2-after-level1": "level 2, after level 1"}


def trial(level: str, recipe: str, seed: int, after: str = "") -> Trial:
    """A trial, from the model of the trial `after` or from the untrained one."""
    options = (recipe, "--train.seed", str(seed), "--train.steps", str(STEPS))
    return Trial(f"{level}-{seed}", options, after=after, leaves_model=level == "level1")


TRIALS = [
    *(trial(level, recipe, seed) for level, recipe in RECIPES.items() for seed in SEEDS),
    *(trial("level2-after-level1", RECIPES["level2"], seed, f"level1-{seed}") for seed in SEEDS),
]


def make_record(run: Run) -> Record:
    """The record of a run, and how often test completions write which operations: the first two, in order."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for line in run.read("eval_rollouts"):
        if line["split"] == "test":
            written = " ".join(OPERATION.findall(line["completion"])[:2])
            counts[str(line["step"])][written or "none"] += 1
    return trials.record_run(run) | {
        "operations": {step: dict(c.most_common()) for step, c in counts.items()}
    }


def write(records: Mapping[str, Record]) -> None:
    """Accuracies; with all seeds, transfer and the effect of the order; operations."""
    by_level = trials.by_setting(records)
    kinds = ("strict",)
    rows = [
        [TITLES[level], *trials.result_row(run, kinds)] for level, runs in by_level.items() for run in runs
    ]
    parts = [trials.table(["trained on", *trials.result_header(kinds)], rows)]
    direct, later = (by_level.get(level, []) for level in ("level2", "level2-after-level1"))
    if len(direct) == len(later) == len(SEEDS):
        parts += [_transfer(direct[0], later), _order(direct, later)]
    parts += [_operations(records)]
    trials.write_page("word_problems", *parts)
    _plot(by_level)


def _transfer(untrained: Record, runs: Sequence[Record]) -> str:
    """Accuracy on level 2's test problems before any training on level 2."""
    before = trials.correct(untrained, 0)
    rows = [["untrained", "", trials.accuracy_cell(before), ""]]
    for run in runs:
        transferred = trials.correct(run, 0)
        p = f"{mcnemar_p_value(before, transferred):.1g}"
        rows.append(["trained on level 1", trials.seed_of(run), trials.accuracy_cell(transferred), p])
    return trials.table(["level 2's test problems", "seed", "strict", "p (paired)"], rows)


def _order(direct: Sequence[Record], later: Sequence[Record]) -> str:
    """How training on level 1 first changes the accuracy after level 2."""
    accuracies = {"after": trials.final_accuracies(later), "direct": trials.final_accuracies(direct)}
    return (
        "Level 2 learned after level 1 against level 2 learned directly (strict, mean over seeds): "
        f"{trials.differences(accuracies, 'direct')['after']} points.\n"
    )


def _operations(records: Mapping[str, Record]) -> str:
    """The operations in the completions to the test problems, the most frequent first."""
    rows = []
    for name, run in records.items():
        level, seed = name.rsplit("-", 1)
        for step, counts in run["operations"].items():
            most = ", ".join(f"`{written}` {n}" for written, n in list(counts.items())[:MOST_FREQUENT])
            if step != "0" or (seed == "0" and level in RECIPES):
                rows.append([TITLES[level], seed if step != "0" else "untrained", most])
    return trials.table(["answers to", "seed", "operations, of 200 answers"], rows)


def _plot(by_level: Mapping[str, list[Record]]) -> None:
    figure, axes = plt.subplots(
        len(by_level), 2, figsize=(10, 3.1 * len(by_level)), sharey="row", squeeze=False
    )
    for row, (level, runs) in zip(axes, by_level.items(), strict=True):
        for run in runs:
            minutes = trials.cumulative_minutes(run["curves"]["step_time"])
            accuracy = trials.smooth(run["curves"]["accuracy/strict"])
            for axis, x in zip(row, (range(1, len(minutes) + 1), minutes), strict=True):
                axis.plot(x, accuracy, linewidth=1.2, label=f"seed {trials.seed_of(run)}")
        row[0].set_ylabel(TITLES[level])
    axes[-1][0].set_xlabel("step")
    axes[-1][1].set_xlabel("minutes in training steps")
    axes[0][0].legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.suptitle("strict accuracy of the sampled completions, mean of 5 steps", fontsize=10)
    trials.save_figure("word_problems", figure)


if __name__ == "__main__":
    trials.main("word_problems", TRIALS, write, make_record)
