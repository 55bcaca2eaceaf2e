"""The quickstart with questions shuffled, chosen, and chosen with refill, three seeds each.

    python experiments/selection.py --parallel 2

A step with refill asks more questions and takes longer. So the settings are compared at equal completions and
at equal minutes, by the validation problems after every second step; the test problems compare the last
steps. Minutes are those of steps and of the untrained evaluation; later evaluations do not count.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean

import trials
from trials import Record, Trial

SETTINGS: dict[str, tuple[str, ...]] = {
    "shuffle": (),
    "adaptive": ("--rollout.selection", "adaptive"),
    "adaptive-refill": ("--rollout.selection", "adaptive", "--rollout.refill", "2"),
}
SEEDS = range(3)
GOAL = 0.6
"""Strict accuracy on validation problems to which the time is taken."""
COMMON = ("quickstart", "--eval.every", "2", "--eval.validation-n", "64", "--eval.n", "200")
TRIALS = [
    Trial(f"{setting}-{seed}", (*COMMON, *options, "--train.seed", str(seed)))
    for seed in SEEDS
    for setting, options in SETTINGS.items()
]


def minutes(run: Record) -> list[float]:
    """From the start of the run to the end of each step, from step 0."""
    untrained = sum(e["seconds"] for e in run["evals"] if e["step"] == 0)
    return [t / 60 for t in accumulate([untrained, *run["curves"]["step_time"]])]


def completions(run: Record) -> list[int]:
    """Completions sampled for training up to the end of each step, from step 0."""
    size = run["samples"] // sum(run["curves"]["questions_asked"])
    return [size * n for n in accumulate([0, *run["curves"]["questions_asked"]])]


def accuracy_within(run: Record, spent: Sequence[float], limit: float) -> float:
    """At the last evaluation before `spent` (by step) is above the limit."""
    by_step = trials.validation(run)
    return by_step[max(step for step in by_step if spent[step] <= limit)]


def minutes_to_goal(run: Record) -> float | None:
    """To the first evaluation at which GOAL is reached; None if it never is."""
    reached = [step for step, strict in trials.validation(run).items() if strict >= GOAL]
    return minutes(run)[min(reached)] if reached else None


def write(records: Mapping[str, Record]) -> None:
    """A row for each setting with all seeds."""
    by_setting = trials.by_setting(records)
    groups = {name: by_setting[name] for name in SETTINGS if len(by_setting.get(name, [])) == len(SEEDS)}
    if "shuffle" not in groups:
        return
    base = groups["shuffle"]
    most = min(completions(run)[-1] for run in base)
    longest = min(minutes(run)[-1] for run in base)
    accuracies = {name: trials.final_accuracies(runs) for name, runs in groups.items()}
    gaps = trials.differences(accuracies, "shuffle")
    rows = []
    for name, runs in groups.items():
        asked = [sum(run["curves"]["questions_asked"]) for run in runs]
        live = [sum(run["curves"]["live_groups"]) for run in runs]
        times = [minutes_to_goal(run) for run in runs]
        rows.append(
            [
                name,
                *(f"{value:.1%}" for value in accuracies[name]),
                gaps.get(name, ""),
                f"{fmean(trials.final_accuracies(runs, 'lenient')):.1%}",
                f"{fmean(accuracy_within(run, completions(run), most) for run in runs):.1%}",
                f"{fmean(accuracy_within(run, minutes(run), longest) for run in runs):.1%}",
                ", ".join("never" if t is None else f"{t:.1f}" for t in times),
                f"{sum(live) / sum(asked):.0%}",
                f"{fmean(completions(run)[-1] for run in runs):,.0f}",
                f"{fmean(minutes(run)[-1] for run in runs):.1f}",
            ]
        )
    header = [
        "questions",
        *(f"strict, seed {seed}" for seed in SEEDS),
        "against shuffle, points",
        "lenient, mean",
        f"validation at {most:,} completions",
        f"validation at {longest:.1f} minutes",
        f"minutes to {GOAL:.0%} on validation",
        "groups with a signal",
        "completions",
        "minutes",
    ]
    trials.write_page("selection", trials.table(header, rows), *trials.machine_lines(records.values()))


if __name__ == "__main__":
    trials.main("selection", TRIALS, write)
