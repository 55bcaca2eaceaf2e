"""When the report of a run in progress is written, and what happens if it fails."""

import logging
from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from helpers.run_files import ONE_RIGHT, SEVEN_RIGHT
from reinforce_lite.report import refresher
from reinforce_lite.report.refresher import ReportRefresher
from reinforce_lite.utils import clock


def test_refresher_logs_a_failure_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It retries every minute, and logs again after another error or a success."""
    wall, attempts = [1000.0], []
    errors: list[str] = []

    def write(*_: Any) -> None:
        attempts.append(wall[0])
        wall[0] += 0.001
        if error := errors.pop(0):
            raise OSError(error)

    monkeypatch.setattr(refresher, "write_report", write)
    monkeypatch.setattr(clock, "now", lambda: wall[0])
    report_refresher = ReportRefresher(runs.write(tmp_path / "a", [runs.step(1)]))
    errors += ["full", "full", "gone", "", "gone"]
    with caplog.at_level(logging.WARNING):
        while errors:
            report_refresher.refresh()
            wall[0] += 1
    assert [round(time) for time in attempts] == [1000, 1060, 1120, 1180, 1181]
    assert [r.message.rpartition(" ")[2] for r in caplog.records] == ["full", "gone", "gone"]


def test_refresher_is_quick_if_the_latest_report_was(tmp_path: Path) -> None:
    report_refresher = ReportRefresher(runs.write(tmp_path / "a", [runs.step(1)]))
    assert not report_refresher.is_quick
    for seconds, quick in ((1.9, True), (2.1, False)):
        report_refresher.seconds = seconds
        assert report_refresher.is_quick is quick


def test_refresher_spends_a_small_share_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that takes 2 s is due again after 100 s: 2% of the time."""
    wall, written = [1000.0], []

    def write(*_: Any) -> None:
        written.append(wall[0])
        wall[0] += 2

    monkeypatch.setattr(refresher, "write_report", write)
    monkeypatch.setattr(clock, "now", lambda: wall[0])
    report_refresher = ReportRefresher(runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT)))
    for moment in (1000.0, 1050.0, 1101.9, 1102.0, 1110.0):
        wall[0] = moment
        report_refresher.refresh()
    assert written == [1000.0, 1102.0]
    report_refresher.refresh(force=True)
    assert written == [1000.0, 1102.0, 1110.0]


def test_refresher_survives_a_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT))
    (run.path / "config.toml").write_text("not = = toml")
    with caplog.at_level(logging.WARNING):
        ReportRefresher(run).refresh()
    assert "no report was written: TOMLDecodeError" in caplog.text
