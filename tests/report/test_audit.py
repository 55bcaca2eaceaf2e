"""The audit's forecast next to what the run did."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from helpers import run_files as runs
from helpers.run_files import ONE_RIGHT, SEVEN_RIGHT, step
from reinforce_lite.report.audit import FIGURES, FORECASTS
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.audit_advice import Forecast, Sampled

OWN: Record = {
    "way": "the recipe",
    "questions": 8,
    "accuracy": 0.375,
    "solved": 0.75,
    "live": 0.5,
    "live_interval": [0.215, 0.785],
    "format_failures": 0.125,
    "truncated": 0.0,
    "mean_tokens": 31.5,
    "options": "",
    "forecast": "likely",
}
RIGHT = [0, 0, 4, 1, 4, 3, 2, 2]


def audited(run: Run, **changes: Any) -> Run:
    """The run, with groups of 4, and an audit.json, as `reinforce-lite audit --json` prints it."""
    boxed = OWN | {"way": "boxed, no examples", "live": 0.25, "options": "--task.answer-format boxed"}
    audit: Record = {
        "data": {"problems": 100, "broken": ""},
        "ways": [OWN, boxed],
        "advice": ["few groups have a signal"],
        "questions": [{"problem_id": f"q{i}", "right": n, "samples": 4} for i, n in enumerate(RIGHT)],
    }
    config = (run.path / "config.toml").read_text(encoding="utf-8")
    config = re.sub(r"group_size = \d+", "group_size = 4", config)
    (run.path / "config.toml").write_text(config, encoding="utf-8")
    run.write_json("audit", {k: v for k, v in (audit | changes).items() if v is not None})
    return run


def test_forecast_and_outcome(tmp_path: Path) -> None:
    """3 + 4 of 4 + 6 groups have a signal; accuracy on 8 problems goes from 1 to 7 right."""
    run = runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT))
    lines = [step(1, questions_asked=4, live_groups=3), step(2, questions_asked=6, live_groups=4)]
    (run.path / "steps.jsonl").unlink()
    run.append("steps", *lines)
    shown = runs.summary_of(audited(run))["audit"]
    assert shown["forecast"] == (
        "Likely to learn: on 8 training questions 37.5% of the untrained model's "
        "completions are right, and 50% (22–79%) of the groups have a signal."
    )
    assert shown["outcome"] == (
        "In 2 steps, 70% of 10 groups had a signal. Accuracy on 8 test problems went from 12.5% to 87.5%."
    )
    assert [(way["way"], way["live"]) for way in shown["ways"]] == [
        ("the recipe", 0.5),
        ("boxed, no examples", 0.25),
    ]
    assert shown["pass_rates"] == [2, 1, 2, 1, 2]
    assert shown["advice"] == ["few groups have a signal"]


def test_outcome_of_a_run_in_progress(tmp_path: Path) -> None:
    run = audited(runs.write(tmp_path / "a", [step(1, questions_asked=4, live_groups=1)]))
    assert runs.summary_of(run)["audit"]["outcome"] == (
        "In 1 step, 25% of 4 groups had a signal. Accuracy after training is not known yet."
    )
    config = (run.path / "config.toml").read_text(encoding="utf-8")
    config = config.replace("[rollout]", '[rollout]\nselection = "adaptive"')
    (run.path / "config.toml").write_text(config, encoding="utf-8")
    summary = runs.summary_of(run)
    assert "25% of 4 groups chosen by adaptive selection had a signal." in summary["audit"]["outcome"]
    assert summary["costs"]["facts"]["selection"] == "adaptive"
    old = audited(runs.write(tmp_path / "b", [step(1)]))  # by a version without these figures
    assert runs.summary_of(old)["audit"]["outcome"] == "Accuracy after training is not known yet."


def test_pass_rates_are_shares_of_other_numbers_of_samples(tmp_path: Path) -> None:
    """All 3 right of 3 is all right; of a question whose rewards all failed nothing is known; asked four times, one
    of four is right."""
    counts = [(3, 3), (2, 4), (1, 2), (0, 0), (4, 16)]
    questions = [{"problem_id": "q", "right": right, "samples": n} for right, n in counts]
    run = audited(runs.write(tmp_path / "a"), questions=questions)
    assert runs.summary_of(run)["audit"]["pass_rates"] == [0, 1, 2, 0, 1]


def test_names_are_those_that_an_audit_writes() -> None:
    assert set(FIGURES) <= {field.name for field in fields(Sampled)}
    assert set(FORECASTS) == set(get_args(Forecast))


@pytest.mark.parametrize("text", [None, "{", "[]", '{"ways": []}'])
def test_no_audit_no_section(text: str | None, tmp_path: Path) -> None:
    run = runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT))
    if text is not None:
        (run.path / "audit.json").write_text(text, encoding="utf-8")
    assert runs.summary_of(run)["audit"] is None


def test_an_audit_may_lack_any_key(tmp_path: Path) -> None:
    run = audited(runs.write(tmp_path / "a"), ways=[{}], advice=None, questions=None)
    shown = runs.summary_of(run)["audit"]
    assert shown["forecast"].startswith("Unknown: on – training questions")
    assert (shown["pass_rates"], shown["advice"]) == ([], [])
    assert set(shown["ways"][0].values()) == {None}
