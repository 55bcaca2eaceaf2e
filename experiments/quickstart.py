"""Does a smaller learning rate or a higher temperature keep the quickstart from losing its entropy?

    python experiments/quickstart.py

Three seeds each, the same number of answers. Accuracy is that of 200 validation problems, so that nothing is
chosen on the test problems.
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
            *("--eval.n", "1", "--eval.validation-n", "200", "--eval.every", "10"),
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
        ends = [[e for e in r["evals"] if e["split"] == "validation"][-1] for r in runs]
        cells = [f"{end['strict']:.1%}" for end in ends]
        last = fmean(fmean(r["curves"]["entropy"][-5:]) for r in runs)
        idle = fmean(fmean(r["curves"]["frac_reward_zero_std"][-5:]) for r in runs)
        middle = fmean(end["strict"] for end in ends)
        rows.append([name, *cells, *[""] * (3 - len(cells)), f"{middle:.1%}", f"{last:.2f}", f"{idle:.0%}"])
    header = ["rate", "seed 0", "seed 1", "seed 2", "mean", "entropy, last 5 steps", "equal groups, last 5"]
    trials.write("quickstart", trials.table(header, rows))


if __name__ == "__main__":
    trials.main("quickstart", TRIALS, write)
