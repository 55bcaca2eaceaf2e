"""Writing a report: atomically, within bounds, and by the command."""

import json
import math
import time
from pathlib import Path

import pytest

from helpers import run_files as runs
from helpers.run_files import ONE_RIGHT, SEVEN_RIGHT
from reinforce_lite.cli.app import main
from reinforce_lite.errors import FileError
from reinforce_lite.report import selection
from reinforce_lite.report.write import write_report


def test_report_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, file = runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT)), tmp_path / "report.html"
    write_report([run], file)
    before = file.read_text(encoding="utf-8")
    monkeypatch.setattr(
        Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(FileError, match="No space left"):
        write_report([run], file)
    assert file.read_text(encoding="utf-8") == before


def test_report_of_fifty_thousand_completions_is_bounded(tmp_path: Path) -> None:
    run = runs.large(tmp_path / "a")
    start = time.process_time()
    counts = write_report([run], tmp_path / "report.html")[0]["completions"]
    assert time.process_time() - start < 10
    assert (tmp_path / "report.html").stat().st_size < 15e6
    assert counts["training"] == 50_000
    assert 4_000 < counts["training_shown"] <= selection.MAX_TRAINING
    assert counts["steps_shown"] == counts["steps"] == 625


def test_report_command_writes_the_file(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.finished(in_tmp / "runs/a", (ONE_RIGHT, SEVEN_RIGHT))
    runs.finished(in_tmp / "runs/b", (ONE_RIGHT, ONE_RIGHT))
    assert main(["report", "a"]) == 0
    assert "report: runs/a/report.html" in capsys.readouterr().out
    assert (in_tmp / "runs/a/report.html").exists()
    assert main(["report", "a", "runs/b"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report: report.html"
    page = (in_tmp / "report.html").read_text(encoding="utf-8")
    assert '<table id="compared">' in page
    assert main(["report", "a", "--out", "mine.html", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == "mine.html"
    assert printed["runs"][0]["result"]["after"]["strict"] == 0.875
    assert printed["runs"][0]["reflection"]["compared"]["c"]["after"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothere"], "there is no run 'nothere'"),
        (["a", "nothere"], "there is no run 'nothere'"),
        ([], "report needs the name of a run"),
    ],
)
def test_report_command_rejects_bad_usage(
    args: list[str], message: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.finished(in_tmp / "runs/a", (ONE_RIGHT, SEVEN_RIGHT))
    assert main(["report", *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("reinforce-lite: ")
    assert message in err
    assert not list(in_tmp.rglob("*.html"))


def test_a_report_that_can_not_be_written_is_status_1(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.finished(in_tmp / "runs/a", (ONE_RIGHT, SEVEN_RIGHT))
    assert main(["report", "a", "--out", "no/such/folder/x.html"]) == 1
    cause, remedy = capsys.readouterr().err.splitlines()
    assert "no/such/folder/x.html: No such file" in cause
    assert "folder" in remedy


def test_a_report_counts_the_steps_that_were_taken_again(tmp_path: Path) -> None:
    run = runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT))
    run.append("steps", runs.step(3), runs.step(4))
    assert "taken again" not in runs.summary_of(run)["costs"]["facts"]
    run.rewind(2)
    assert runs.summary_of(run)["costs"]["facts"]["taken again"].startswith("2 steps")


@pytest.mark.case(10)
def test_report_of_steps_that_are_not_finite(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With null, as they are written, and with NaN, as version 0.1 wrote it."""
    null = {"entropy": None, "loss": None, "grad_norm": None, "not_finite": "gradient"}
    old = {"entropy": math.nan, "loss": math.inf, "grad_norm": math.nan}
    runs.write(
        in_tmp / "runs/a", [runs.step(1), runs.step(2, **null), runs.step(3, **old)], stopped="not finite"
    )
    assert main(["report", "a", "--json"]) == 0
    [report] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["runs"]
    [warning] = report["warnings"]
    assert "gradient not finite in 1 of 3 steps" in warning
    assert report["result"]["status"].startswith("failed at step 3 of 3")
