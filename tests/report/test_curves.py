"""Curves over steps: time, gaps, averages, which charts are drawn."""

from pathlib import Path

import pytest

from helpers import run_files as runs
from helpers.run_files import eval_completions, step
from reinforce_lite.report import curves
from reinforce_lite.report.curves import build_curves
from reinforce_lite.report.run_data import load_run_data
from reinforce_lite.report.write import write_report

F, T = False, True


def test_seconds_count_steps_and_evaluations(tmp_path: Path) -> None:
    """Steps of 10 s; two evaluations of 3 s before the first, one after the second."""
    evaluations = [
        eval_completions(0, [T], "validation"),
        eval_completions(0, [T]),
        eval_completions(2, [T], "validation"),
    ]
    run = runs.write(tmp_path / "a", [step(1), step(2), step(3)], evaluations=evaluations)
    curve_data = build_curves(load_run_data(run))
    assert curve_data["steps"] == [1, 2, 3]
    assert curve_data["seconds"] == [16, 26, 39]
    assert [(e["step"], e["split"], e["seconds"]) for e in curve_data["evals"]] == [
        (0, "validation", 0),
        (2, "validation", 26),
    ]


def test_missing_or_nan_figures_are_gaps(tmp_path: Path) -> None:
    lines = [
        step(1, grad_norm=float("nan"), **{"accuracy/lenient": None}),
        step(2, **{"accuracy/lenient": None}),
    ]
    run = runs.write(tmp_path / "a", lines)
    curve_data = build_curves(load_run_data(run))["columns"]
    assert curve_data["grad_norm"] == [None, 1.0]
    assert "accuracy/lenient" not in curve_data
    assert "accuracy/second_opinion" not in curve_data
    write_report([run], tmp_path / "report.html")


def test_warm_start_has_no_no_signal_groups(tmp_path: Path) -> None:
    lines = [step(1, warm_start=True, frac_reward_zero_std=1.0), step(2, frac_reward_zero_std=0.5)]
    run = runs.write(tmp_path / "a", lines)
    assert build_curves(load_run_data(run))["columns"]["frac_reward_zero_std"] == [None, 0.5]


def test_many_steps_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MAX_POINTS", 2)
    run = runs.write(tmp_path / "a", [step(n, reward=float(n)) for n in (1, 2, 3)])
    curve_data = build_curves(load_run_data(run))
    assert (curve_data["averaged"], curve_data["steps"], curve_data["columns"]["reward"]) == (
        2,
        [2, 3],
        [1.5, 3.0],
    )


def test_second_opinion_is_drawn_if_it_differs_from_lenient(tmp_path: Path) -> None:
    """In tasks with numeric golds it equals the lenient verdict, 0.5; one run with another is enough to draw both."""
    same, other = (
        build_curves(load_run_data(runs.write(tmp_path / str(second), [step(1, **{curves.SECOND: second})])))
        for second in (0.5, 0.25)
    )
    for drawn, expected in (([same], F), ([other], T), ([same, other], T), ([same, same], F)):
        assert (curves.SECOND in curves.charts(drawn)[0]["lines"]) == expected
    assert same["columns"][curves.SECOND] == [0.5]


def test_reflection_columns_are_those_of_the_metrics() -> None:
    assert curves.REFLECTION == ("reflection/list_a", "reflection/list_b", "reflection/list_c")
