"""The report of a run that goes on, when it can't be written."""

import logging
from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from reinforce_lite import report
from reinforce_lite.report import ReportRefresher


def test_a_report_that_fails_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the minute it is tried again, and told again when something else is wrong or it had been mended."""
    clock, tried = [1000.0], []
    faults: list[str] = []

    def write(*_: Any) -> None:
        tried.append(clock[0])
        clock[0] += 0.001
        if fault := faults.pop(0):
            raise OSError(fault)

    monkeypatch.setattr(report, "write_report", write)
    monkeypatch.setattr(report.clock, "now", lambda: clock[0])
    keeper = ReportRefresher(runs.write(tmp_path / "a", [runs.step(1)]))
    faults += ["full", "full", "gone", "", "gone"]
    with caplog.at_level(logging.WARNING):
        while faults:
            keeper.refresh()
            clock[0] += 1
    assert [round(time) for time in tried] == [1000, 1060, 1120, 1180, 1181]
    assert [r.message.rpartition(" ")[2] for r in caplog.records] == ["full", "gone", "gone"]


def test_quick_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = ReportRefresher(runs.write(tmp_path / "a", [runs.step(1)]))
    assert not keeper.is_quick
    for seconds, quick in ((1.9, True), (2.1, False)):
        keeper.seconds = seconds
        assert keeper.is_quick is quick
