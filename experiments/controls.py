"""Does accuracy rise only where right answers are paid for? One-step word problems, three seeds each.

    python experiments/controls.py --parallel 2

The quickstart is compared with the same run paid by a coin, and with one at learning rate 0. A prompt with
one worked example, whose format the untrained model often misses, is compared with the same run paid for the
format alone: that run can raise the share of completions in the format, but should not raise lenient
accuracy. `reinforce-lite report RUN RUN` draws two of the runs side by side.
"""

from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean

import trials
from forecasts import APPLES, worked
from format_alone import IN_FORMAT
from trials import Record, Trial

from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.runlog.health import find_warnings
from reinforce_lite.runlog.run import Run

SEEDS = range(3)
SIGNIFICANT = 0.01
ONE_EXAMPLE = worked(APPLES)
STOP = ("--rollout.stop", "</answer>")  # a task in a file has no stop of its own
SETTINGS: dict[str, tuple[str, ...]] = {
    "real": (),
    "coin": ("--task.name", "experiments/coin.py", *STOP),
    "rate-0": ("--update.learning-rate", "0"),
    "one-example": ONE_EXAMPLE,
    "one-example-format": (*ONE_EXAMPLE, "--task.name", "experiments/format_alone.py", *STOP),
}
TITLES = {
    "real": "right answers (the quickstart)",
    "coin": "a coin",
    "rate-0": "right answers, learning rate 0",
    "one-example": "right answers, one worked example",
    "one-example-format": "the format, one worked example",
}
TRIALS = [
    Trial(f"{setting}-{seed}", ("quickstart", *options, "--train.seed", str(seed), "--eval.n", "200"))
    for seed in SEEDS
    for setting, options in SETTINGS.items()
]


def make_record(run: Run) -> Record:
    """The record of a run, the share of test completions in the format by step, and each kind of warning."""
    in_format: dict[str, list[bool]] = defaultdict(list)
    for line in run.read("eval_rollouts"):
        if line["split"] == "test":
            in_format[str(line["step"])].append(line["reason"] in IN_FORMAT)
    steps = run.step_metrics
    warned = {kind for end in range(1, len(steps) + 1) for kind in find_warnings(steps[:end])}
    shares = {step: fmean(found) for step, found in in_format.items()}
    return trials.record_run(run) | {"in_format": shares, "warned": sorted(warned)}


def write(records: Mapping[str, Record]) -> None:
    """A row for each run, and in how many of them accuracy rose beyond chance."""
    by_setting = trials.by_setting(records)
    rows, parts = [], []
    for setting in SETTINGS:
        for run in by_setting.get(setting, []):
            shares = run["in_format"]
            ends = shares[min(shares, key=int)], shares[max(shares, key=int)]
            cells = trials.result_row(run)[:-2]  # without p and minutes
            p = [f"{_p(run, kind):.1g}" for kind in trials.KINDS]
            warned = ", ".join(run["warned"]) or "none"
            rows.append([TITLES[setting], *cells, *(f"{share:.0%}" for share in ends), *p, warned])
        if runs := by_setting.get(setting, []):
            strict, lenient = (sum(_rose(run, kind) for run in runs) for kind in trials.KINDS)
            warned_runs = sum(bool(run["warned"]) for run in runs)
            parts.append(
                f"{TITLES[setting]}: strict rose (p < {SIGNIFICANT}) in {strict} of {len(runs)} runs, "
                f"lenient in {lenient}; {warned_runs} with a warning.\n"
            )
    header = ["paid for", *trials.result_header()[:-2], "in the format before", "after"]
    header += ["p strict", "p lenient", "warnings"]
    trials.write_page("controls", trials.table(header, rows), *parts, *trials.machine_lines(records.values()))


def _p(run: Record, kind: str) -> float:
    return mcnemar_p_value(trials.correct(run, 0, kind), trials.correct(run, -1, kind))


def _rose(run: Record, kind: str) -> bool:
    gained = fmean(trials.correct(run, -1, kind)) > fmean(trials.correct(run, 0, kind))
    return gained and _p(run, kind) < SIGNIFICANT


if __name__ == "__main__":
    trials.main("controls", TRIALS, write, make_record)
