"""Run directories to one HTML file that opens anywhere: no network, no server, nothing else beside it.

    config.toml  steps.jsonl  evals.jsonl  summary.json ──▶ result, curves, cost ──┐
    rollouts.jsonl  eval_rollouts.jsonl ──▶ answers, asked, aha ──▶ choice ────────┴──▶ page ──▶ report.html

It reads the run directory and nothing else, so it tells the same of a run that goes on, one that was
killed and one from another machine. Curves are drawn by a few hundred lines of our own: a plotting library
would make each file 4 MB larger and its text no safer.

    reinforce-lite report RUN [RUN ...]
"""

import logging
import tomllib
from collections.abc import Sequence
from pathlib import Path

from reinforce_lite.errors import UsageError
from reinforce_lite.report import page
from reinforce_lite.report.build import RunReport, build_report
from reinforce_lite.runlog.run import Line, Run
from reinforce_lite.utils import clock
from reinforce_lite.utils.atomic import write_atomically

logger = logging.getLogger(__name__)

NAME = "report.html"
SHARE = 0.02  # of a run's time, at most, that goes into its report
QUICK = 2.0  # seconds that a person who stops a run waits without a thought
AGAIN = 60.0  # seconds, at the least, until a report that failed is tried again


def write_report(runs: Sequence[Run], file: Path) -> list[Line]:
    """Write the report of one run or several, whole or not at all; returns what it says in numbers.

    Raises UsageError, with the file's name, where a run can't be read, and OSError where `file` can't be
    written.
    """
    made = [_part(run, share=len(runs)) for run in runs]
    write_atomically(file, page.render(made))
    return [numbers for numbers, _ in made]


def _part(run: Run, share: int) -> RunReport:
    try:
        return build_report(run, share)
    except OSError as error:
        raise UsageError(f"can't read {error.filename or run.path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:  # of JSON lines it is told by runlog
        raise UsageError(f"{run.path / 'config.toml'} is damaged: {error}") from error


class ReportRefresher:
    """Keeps a run's report.html fresh while it trains, within SHARE of its time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.due = 0.0  # by the clock of `deadline`
        self.seconds = 0.0
        """What the last one took; 0: there was none yet."""
        self.said = ""

    @property
    def is_due(self) -> bool:
        """Whether `refresh` would write it now."""
        return clock.now() >= self.due

    @property
    def is_quick(self) -> bool:
        """Whether the next one is known to take no time worth a thought."""
        return 0 < self.seconds < QUICK

    def refresh(self, must: bool = False) -> None:
        """Write the report if it is due or `must` be. A fault is a note: no report is worth a run."""
        if not (self.is_due or must):
            return
        start, pause = clock.now(), 0.0
        try:
            write_report([self.run], self.run.path / NAME)
            self.said = ""
        except Exception as error:  # a full disk, a file that someone edited: training must go on
            self._say(error)
            pause = AGAIN
        self.seconds = clock.now() - start
        self.due = clock.now() + max(pause, self.seconds / SHARE)

    def _say(self, error: Exception) -> None:
        """Once, until it is another error or one report was written."""
        kind = type(error.__cause__ or error).__name__
        said = f"{kind}: {' '.join(str(error).split())}"
        if said != self.said:
            logger.warning("no report was written: %s", said)
        self.said = said
