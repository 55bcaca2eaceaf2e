"""Does a smaller learning rate or a higher temperature keep the quickstart from losing its entropy?

    python experiments/quickstart.py

Three seeds each, the same number of answers. Test problems are used to report, and a recipe is chosen by the
mean over seeds; what is chosen is measured again on other seeds (experiments/parts.py).
"""

from collections.abc import Mapping
from statistics import fmean

import trials
from trials import Kept, Trial

STEPS = 30
SETTINGS = {
    "2e-5, temperature 0.7": ("2e-5", "0.7", "0.9"),
    "1e-5, temperature 0.7": ("1e-5", "0.7", "0.9"),
    "1e-5, temperature 1": ("1e-5", "1", "1"),
    "2e-5, temperature 1": ("2e-5", "1", "1"),
}


def label(name: str) -> str:
    return name.replace(", temperature ", "-t")


TRIALS = [
    Trial(
        f"{label(name)}-{seed}",
        (
            *("quickstart", "--train.steps", str(STEPS), "--train.seed", str(seed)),
            *("--update.learning-rate", rate, "--rollout.temperature", temperature, "--rollout.top-p", top_p),
        ),
    )
    for seed in range(3)
    for name, (rate, temperature, top_p) in SETTINGS.items()
]


def write(kept: Mapping[str, Kept]) -> None:
    found = trials.by_seed(kept)
    rows = []
    for name in SETTINGS:
        runs = found.get(label(name), [])
        if not runs:
            continue
        cells = [f"{fmean(trials.right(r, -1)):.1%}" for r in runs]
        last = fmean(fmean(r["curves"]["entropy"][-5:]) for r in runs)
        idle = fmean(fmean(r["curves"]["frac_reward_zero_std"][-5:]) for r in runs)
        middle = fmean(fmean(trials.right(r, -1)) for r in runs)
        rows.append([name, *cells, *[""] * (3 - len(cells)), f"{middle:.1%}", f"{last:.2f}", f"{idle:.0%}"])
    header = ["rate", "seed 0", "seed 1", "seed 2", "mean", "entropy, last 5 steps", "equal groups, last 5"]
    trials.write("quickstart", trials.table(header, rows))


if __name__ == "__main__":
    trials.main("quickstart", TRIALS, write)
