"""The phases of a step, timed by a clock that the test moves."""

import time

import pytest

from reinforce_lite.utils import clock


def test_laps_are_the_seconds_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 103.0, 104.5, 110.0])  # start, two laps, total
    monkeypatch.setattr(clock, "now", lambda: next(times))
    step = clock.Clock()
    step.lap("rollout")
    step.lap("update")
    assert step.laps == {"rollout": 3.0, "update": 1.5}
    assert step.total == 10.0


def test_work_done_before_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", iter([10.0, 12.0, 13.0]).__next__)
    phases = clock.Clock()
    phases.add("rollout", 5.0)
    phases.lap("rollout")
    assert phases.laps == {"rollout": 7.0}
    assert phases.total == 8.0


def test_now_does_not_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a wall clock that is set back
    first = clock.now()
    assert clock.now() >= first > 0
