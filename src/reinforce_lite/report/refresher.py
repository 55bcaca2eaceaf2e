"""Keep the report of a run up to date while it trains, without slowing it down."""

import logging

from reinforce_lite.report.write import REPORT_NAME, write_report
from reinforce_lite.runlog.run import Run
from reinforce_lite.utils import clock

logger = logging.getLogger(__name__)

MAX_SHARE = 0.02  # of a run's time that may be spent on its report
QUICK_SECONDS = 2.0  # a person who stops a run waits this long without noticing
RETRY_SECONDS = 60.0  # minimum wait after a report that failed


class ReportRefresher:
    """Rewrites a run's report.html within MAX_SHARE of the run's time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.due = 0.0  # by `clock.now`
        self.seconds = 0.0
        """Duration of the latest report; 0 before the first."""
        self.last_error = ""

    @property
    def is_due(self) -> bool:
        """Whether `refresh` would write a report now."""
        return clock.now() >= self.due

    @property
    def is_quick(self) -> bool:
        """Whether a report is known to take less than QUICK_SECONDS."""
        return 0 < self.seconds < QUICK_SECONDS

    def refresh(self, force: bool = False) -> None:
        """Write the report if it is due or `force` is set; log an error, so that training continues."""
        if not (self.is_due or force):
            return
        start, pause = clock.now(), 0.0
        try:
            write_report([self.run], self.run.path / REPORT_NAME)
            self.last_error = ""
        except Exception as error:  # a full disk, a file that someone edited
            self._log_once(error)
            pause = RETRY_SECONDS
        self.seconds = clock.now() - start
        self.due = clock.now() + max(pause, self.seconds / MAX_SHARE)

    def _log_once(self, error: Exception) -> None:
        """Log an error unless it is the same as in the attempt before."""
        kind = type(error.__cause__ or error).__name__
        message = f"{kind}: {' '.join(str(error).split())}"
        if message != self.last_error:
            logger.warning("no report was written: %s", message)
        self.last_error = message
