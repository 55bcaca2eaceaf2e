"""Does a smaller learning rate or a higher temperature preserve the quickstart's entropy?

    python experiments/quickstart.py

Three seeds each, the same number of completions. Accuracy is that on 200 validation problems, so that nothing
is chosen on the test problems.
"""

from collections.abc import Mapping
from statistics import fmean

import trials
from trials import Record, Trial

STEPS = 30
SEEDS = range(3)
SETTINGS = {
    "2e-5, temperature 0.7": ("2e-5", "0.7", "0.9"),
    "1e-5, temperature 0.7": ("1e-5", "0.7", "0.9"),
    "1e-5, temperature 1": ("1e-5", "1", "1"),
}


def label(name: str) -> str:
    """A setting in the name of a trial."""
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
    for seed in SEEDS
    for name, (rate, temperature, top_p) in SETTINGS.items()
]


def write(records: Mapping[str, Record]) -> None:
    """Settings with missing seeds are omitted."""
    by_setting = trials.by_setting(records)
    rows = []
    for name in SETTINGS:
        runs = by_setting.get(label(name), [])
        if len(runs) < len(SEEDS):
            continue
        reached = {step: [trials.validation(run)[step] for run in runs] for step in (10, 20, STEPS)}
        cells = [f"{end:.1%}" for end in reached[STEPS]]
        means = [f"{fmean(each):.1%}" for each in reached.values()]
        last = fmean(fmean(r["curves"]["entropy"][-5:]) for r in runs)
        no_signal = fmean(fmean(r["curves"]["frac_reward_zero_std"][-5:]) for r in runs)
        rows.append([name, *cells, *means, f"{last:.2f}", f"{no_signal:.0%}"])
    header = ["rate", *(f"seed {seed}" for seed in SEEDS), "mean after 10", "after 20", f"after {STEPS}"]
    trials.write_page(
        "quickstart", trials.table([*header, "entropy, last 5", "no-signal groups, last 5"], rows)
    )


if __name__ == "__main__":
    trials.main("quickstart", TRIALS, write)
