"""The quickstart as it is shipped, with six seeds: strict and lenient accuracy before and after.

    python experiments/seeds.py --parallel 2

The records also keep the golds and the texts of the test completions, so that the verdicts can be computed
again when their rules change.
"""

from collections import defaultdict
from collections.abc import Mapping

import trials
from trials import Record, Trial

from reinforce_lite.runlog.run import Run

TRIALS = [
    Trial(f"seed-{seed}", ("quickstart", "--train.seed", str(seed), "--eval.n", "200")) for seed in range(6)
]


def make_record(run: Run) -> Record:
    """The record of a run, with golds and texts in the order of the verdicts."""
    golds: dict[str, str] = {}
    texts: dict[str, list[str]] = defaultdict(list)
    for line in run.read("eval_rollouts"):
        if line["split"] == "test":
            golds[line["problem_id"]] = line["gold"]
            texts[str(line["step"])].append(line["completion"])
    return trials.record_run(run) | {"golds": list(golds.values()), "completions": texts}


def write(records: Mapping[str, Record]) -> None:
    """The table, and on which machines the seeds ran."""
    rows = [trials.result_row(run) for run in records.values()]
    trials.write_page(
        "seeds", trials.table(trials.result_header(), rows), *trials.machine_lines(records.values())
    )


if __name__ == "__main__":
    trials.main("seeds", TRIALS, write, make_record)
