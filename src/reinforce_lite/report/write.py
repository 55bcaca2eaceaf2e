"""Write the report of one run or several to a file."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from reinforce_lite.errors import UsageError
from reinforce_lite.report import page
from reinforce_lite.report.build import RunReport, build_report
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run
from reinforce_lite.utils.atomic import write_atomically

REPORT_NAME = "report.html"


def write_report(runs: Sequence[Run], file: Path) -> list[Record]:
    """Write the report atomically and return the summary of each run, as `report --json` prints it.

    Raises UsageError, with the file's name, if a run cannot be read, and OSError if `file` cannot be written.
    """
    reports = [_build(run, n_runs=len(runs)) for run in runs]
    write_atomically(file, page.render(reports))
    return [report.summary for report in reports]


def _build(run: Run, n_runs: int) -> RunReport:
    try:
        return build_report(run, n_runs)
    except OSError as error:
        raise UsageError(f"can't read {error.filename or run.path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:  # runlog reports damaged JSON itself
        raise UsageError(f"{run.path / 'config.toml'} is damaged: {error}") from error
