"""Three tasks of reasoning-gym whose forecast is "likely", and one whose forecast is "unlikely", three seeds.

    python experiments/gym_tasks.py --parallel 2

Adding two numbers of two digits, counting a letter in a word, and counting the 1 bits of a number, each with
worked examples; and the same sums without. In the two counting tasks the most frequent answer alone earns a
reward, and the audit says so. The recipes are those of `forecasts.py`, which has their audits.
"""

from collections.abc import Mapping

import trials
from forecasts import RECIPES
from trials import Record, Trial

SEEDS = range(3)
STEPS = 40
LENGTH = ("--train.steps", str(STEPS), "--eval.every", "10", "--eval.validation-n", "48")
TITLES = {
    "sum-2-digits-examples": "sums of two digits",
    "letters-1-word-examples": "letters in a word",
    "bits-1000-examples": "1 bits of numbers up to 1000",
    "sum-2-digits": "the same sums without worked examples",
}
STRICT = ("strict",)
"""These tasks have no lenient verdict."""
TRIALS = [
    Trial(f"{task}-{seed}", (*RECIPES[task], *LENGTH, "--train.seed", str(seed)))
    for seed in SEEDS
    for task in TITLES
]


def write(records: Mapping[str, Record]) -> None:
    """Each run before and after, and strict accuracy on validation on the way."""
    by_task = trials.by_setting(records)
    runs = [(task, run) for task in TITLES for run in by_task.get(task, [])]
    rows = [
        [TITLES[task], *trials.result_row(run, STRICT), f"{trials.best_constant(run):.1%}"]
        for task, run in runs
    ]
    curves = [
        [
            TITLES[task],
            trials.seed_of(run),
            *(f"{accuracy:.0%}" for accuracy in trials.validation(run).values()),
        ]
        for task, run in runs
    ]
    steps = [str(step) for step in trials.validation(runs[0][1])]
    trials.write_page(
        "gym_tasks",
        trials.table(["task", *trials.result_header(STRICT), "best constant"], rows),
        trials.table(["strict on validation after steps", "seed", *steps], curves),
        *trials.machine_lines(records.values()),
    )


if __name__ == "__main__":
    trials.main("gym_tasks", TRIALS, write)
