"""Word problems of one and of two steps, and whether the one helps with the other.

    python experiments/word_problems.py --at-once 2

Level 1 is the quickstart with more steps; level 2 has worked examples of two steps (level2.toml). Level 2 is
learned by the untrained model, and by those that level 1 has trained. What these make of its test problems
before their first step is transfer.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import trials
from trials import KINDS, Kept, Trial

from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.runlog.run import Run

SEEDS = range(3)
STEPS = 36
RECIPES = {"level1": "quickstart", "level2": "experiments/level2.toml"}
MOST = 5
OPERATION = re.compile(r"\d ([-+*/]) \d+ =")
TITLES = {"level1": "level 1", "level2": "level 2", "level2-after-level1": "level 2, after level 1"}


def trial(level: str, recipe: str, seed: int, after: str = "") -> Trial:
    options = (recipe, "--train.seed", str(seed), "--train.steps", str(STEPS))
    return Trial(f"{level}-{seed}", options, after=after, leaves_model=level == "level1")


TRIALS = [
    *(trial(level, recipe, seed) for level, recipe in RECIPES.items() for seed in SEEDS),
    *(trial("level2-after-level1", RECIPES["level2"], seed, f"level1-{seed}") for seed in SEEDS),
]


def keep(run: Run) -> Kept:
    """A run, and how often its test answers write which operations: the first two, in their order."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for line in run.read("eval_rollouts"):
        if line["split"] == "test":
            written = " ".join(OPERATION.findall(line["completion"])[:2])
            found[str(line["step"])][written or "none"] += 1
    return trials.of_run(run) | {"operations": {step: dict(c.most_common()) for step, c in found.items()}}


def write(kept: Mapping[str, Kept]) -> None:
    found = trials.by_seed(kept)
    rows = [[TITLES[level], *trials.learned(run)] for level, runs in found.items() for run in runs]
    parts = [trials.table(["trained on", *trials.LEARNED], rows)]
    direct, later = found.get("level2", []), found.get("level2-after-level1", [])
    if len(direct) == len(later) == len(SEEDS):
        parts += [_transfer(direct[0], later), _order(direct, later)]
    parts += [_operations(kept)]
    trials.write("word_problems", *parts)
    _plot(found)


def _transfer(untrained: Kept, runs: Sequence[Kept]) -> str:
    """Level 2's test problems before anything was learned of level 2."""
    rows = [["untrained", "", *(trials.share(trials.right(untrained, 0, k)) for k in KINDS), ""]]
    for run in runs:
        shares = [trials.share(trials.right(run, 0, kind)) for kind in KINDS]
        p = [mcnemar_p_value(trials.right(untrained, 0, k), trials.right(run, 0, k)) for k in KINDS]
        rows.append(["trained on level 1", trials.seed(run), *shares, f"{max(p):.1g}"])
    return trials.table(["level 2's test problems", "seed", "strict", "lenient", "p (paired)"], rows)


def _order(direct: Sequence[Kept], later: Sequence[Kept]) -> str:
    """What level 1 beforehand does to what level 2 teaches."""
    ends = {"after": trials.ends(later), "at once": trials.ends(direct)}
    return (
        "Level 2 learned after level 1 against level 2 learned at once (strict, mean over seeds): "
        f"{trials.against(ends, 'at once')['after']} points.\n"
    )


def _operations(kept: Mapping[str, Kept]) -> str:
    """What the answers to the test problems write, the most frequent first."""
    rows = []
    for name, run in kept.items():
        level, seed = name.rsplit("-", 1)
        for step, counts in run["operations"].items():
            most = ", ".join(f"`{written}` {n}" for written, n in list(counts.items())[:MOST])
            if step != "0" or (seed == "0" and level in RECIPES):
                rows.append([TITLES[level], seed if step != "0" else "untrained", most])
    return trials.table(["answers to", "seed", "operations, of 200 answers"], rows)


def _plot(found: Mapping[str, list[Kept]]) -> None:
    figure, axes = plt.subplots(len(found), 2, figsize=(10, 3.1 * len(found)), sharey="row", squeeze=False)
    for row, (level, runs) in zip(axes, found.items(), strict=True):
        for run in runs:
            minutes = trials.minutes(run["curves"]["step_time"])
            curves = {k: trials.smooth(run["curves"][f"accuracy/{k}"]) for k in KINDS}
            for axis, x in zip(row, (range(1, len(minutes) + 1), minutes), strict=True):
                (line,) = axis.plot(x, curves["strict"], linewidth=1.2, label=f"seed {trials.seed(run)}")
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
    trials.main("word_problems", TRIALS, write, keep)
