"""Does a warm start help where a task is too hard? Word problems of two steps, from the untrained model.

    python experiments/warm_start.py --parallel 2 --only recipe warm
    python experiments/warm_start.py --only whole

An hour each: the recipe as it is, after a warm start, and after one with adaptive selection and refill. They
run two at a time, on half of the machine each; the last setting also runs on the whole machine. The records
also keep which operations the test completions write: runs that learn nothing fall into stereotypes
(docs/log.md).
"""

from collections.abc import Mapping

import trials
from trials import Record, Trial
from word_problems import make_record

SEEDS = range(3)
HOURS = 1
WARM_STEPS = 30
"""Ten minutes or so."""
EVERY = 30
"""Steps between evaluations on validation."""
WARM = ("--train.warm-start", str(WARM_STEPS))
ADAPTIVE = (*WARM, "--rollout.selection", "adaptive", "--rollout.refill", "2")
SETTINGS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "warm": WARM,
    "warm-adaptive": ADAPTIVE,
    "whole": ADAPTIVE,
}
TITLES = {
    "recipe": "the recipe",
    "warm": f"{WARM_STEPS} steps of warm start",
    "warm-adaptive": f"{WARM_STEPS} steps of warm start, adaptive, refill 2",
    "whole": f"{WARM_STEPS} steps of warm start, adaptive, refill 2, the whole machine",
}
LIMITS = ("--train.hours", str(HOURS), "--train.steps", "1000")  # the hours end first
EVALUATIONS = ("--eval.n", "200", "--eval.every", str(EVERY))

TRIALS = [
    Trial(
        f"{setting}-{seed}",
        ("experiments/level2.toml", "--train.seed", str(seed), *LIMITS, *EVALUATIONS, *options),
    )
    for seed in SEEDS
    for setting, options in SETTINGS.items()
]


def write(records: Mapping[str, Record]) -> None:
    """Each run's accuracy and steps; with all seeds, the differences from the recipe as it is."""
    by_setting = trials.by_setting(records)
    rows = [
        [TITLES[setting], *trials.result_row(run), *_ending(run)]
        for setting in SETTINGS
        for run in by_setting.get(setting, [])
    ]
    header = ["", *trials.result_header(), "best constant", "steps", "operations of 200 completions after"]
    parts = [trials.table(header, rows)]
    complete = {s: runs for s, runs in by_setting.items() if len(runs) == len(SEEDS)}
    if "recipe" in complete:
        accuracies = {setting: trials.final_accuracies(runs) for setting, runs in complete.items()}
        for setting, points in trials.differences(accuracies, "recipe").items():
            parts.append(
                f"{TITLES[setting]}, against the recipe (strict, mean over seeds): {points} points.\n"
            )
    trials.write_page("warm_start", *parts, *trials.machine_lines(records.values()))


def _ending(run: Record) -> list[str]:
    """The best constant answer, the steps, and the operations that most test completions write after them."""
    counts = run["operations"][max(run["operations"], key=int)]
    most = ", ".join(f"`{written}` {n}" for written, n in list(counts.items())[:3])
    return [f"{trials.best_constant(run):.1%}", str(run["steps"]), most]


if __name__ == "__main__":
    trials.main("warm_start", TRIALS, write, make_record)
