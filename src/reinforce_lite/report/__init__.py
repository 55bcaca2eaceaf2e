"""Run directories to one HTML file that opens anywhere: no network, no server, nothing else beside it.

    config.toml  steps.jsonl  evals.jsonl  summary.json ──▶ result, curves, cost ──┐
    rollouts.jsonl  eval_rollouts.jsonl ──▶ answers, asked, aha ──▶ choice ────────┴──▶ page ──▶ report.html

It reads the run directory and nothing else, so it tells the same of a run that goes on, one that was
killed and one from another machine. Curves are drawn by a few hundred lines of our own: a plotting library
would make each file 4 MB larger and its text no safer.

    reinforce-lite report RUN [RUN ...]
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from reinforce_lite import deadline
from reinforce_lite.report import page, parts
from reinforce_lite.runlog import Line, Run, replace

logger = logging.getLogger(__name__)

NAME = "report.html"
SHARE = 0.02  # of a run's time, at most, that goes into its report


def write(runs: Sequence[Run], file: Path) -> list[Line]:
    """Write the report of one run or several, whole or not at all; returns what it says in numbers.

    Raises OSError where the file can't be written.
    """
    made = [parts.of(run, share=len(runs)) for run in runs]
    replace(file, page.render(made))
    return [numbers for numbers, _ in made]


class Keeper:
    """Keeps a run's report.html fresh while it trains, within SHARE of its time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.due = 0.0  # by the clock of `deadline`
        self.seconds = 0.0
        """What the last one took."""

    def refresh(self, must: bool = False) -> None:
        """Write the report if it is due or `must` be. A fault is a note: no report is worth a run."""
        start = deadline.now()
        if start < self.due and not must:
            return
        try:
            write([self.run], self.run.path / NAME)
        except Exception as error:  # a full disk, a file that someone edited: training must go on
            logger.warning("no report was written: %s: %s", type(error).__name__, error)
        self.seconds = deadline.now() - start
        self.due = deadline.now() + self.seconds / SHARE
