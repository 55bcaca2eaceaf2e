"""Write the report of one run or several to a file."""

from collections.abc import Sequence
from pathlib import Path

from reinforce_lite.errors import explain_file_errors
from reinforce_lite.report import page
from reinforce_lite.report.build import build_report
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run
from reinforce_lite.utils.atomic import write_atomically


def write_report(runs: Sequence[Run], file: Path) -> list[Record]:
    """Write the report atomically and return the summary of each run, as `report --json` prints it.

    Raises FileError if a run cannot be read or `file` cannot be written, UsageError for damaged files.
    """
    reports = [build_report(run, n_runs=len(runs)) for run in runs]
    with explain_file_errors("write", file):
        write_atomically(file, page.render(reports))
    return [report.summary for report in reports]
