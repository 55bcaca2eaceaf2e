"""How long watched work may take without an advance, with a clock that the tests set."""

import pytest

from reinforce_lite.models.watch import FIRST_SECONDS, PATIENCE, STUCK_SECONDS, Watch


class Clock:
    """Stands in for the module time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """The moment."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("reinforce_lite.models.watch.time", clock)
    return clock


def work(watch: Watch, clock: Clock, *pauses: float, expected: float = 0.0) -> list[str | None]:
    """Whether it counts as stuck just before each advance."""
    seen = []
    with watch.over("sampling", expected):
        for pause in pauses:
            clock.now += pause
            seen.append(watch.stuck_in())
            watch.advance()
    return seen


def test_work_that_advances_may_take_as_long_as_it_likes(clock: Clock) -> None:
    watch = Watch()
    assert work(watch, clock, *[1.0] * 10_000) == [None] * 10_000


def test_work_without_an_advance_is_stuck(clock: Clock) -> None:
    watch = Watch()
    work(watch, clock, 1.0)
    assert work(watch, clock, STUCK_SECONDS - 1) == [None]
    watch = Watch()
    work(watch, clock, 1.0)
    assert work(watch, clock, STUCK_SECONDS + 1) == ["sampling, for 46 seconds"]


def test_slow_work_has_more_time_as_has_the_first_of_its_kind(clock: Clock) -> None:
    watch = Watch()
    assert work(watch, clock, FIRST_SECONDS - 1, 1.0) == [None, None]
    watch = Watch()
    work(watch, clock, 20.0, 3.0)
    assert work(watch, clock, 20 * PATIENCE - 1) == [None]
    watch = Watch()
    work(watch, clock, 20.0, 3.0)
    assert work(watch, clock, 20 * PATIENCE + 1) != [None]


def test_work_of_which_it_is_known_how_long_it_takes(clock: Clock) -> None:
    assert work(Watch(), clock, 799.0, expected=100.0) == [None]
    assert work(Watch(), clock, 801.0, expected=100.0) != [None]
    assert work(Watch(), clock, 46.0, expected=0.1) != [None]


def test_nothing_else_is_watched(clock: Clock) -> None:
    watch = Watch()
    work(watch, clock, 1.0)
    clock.now += 10_000
    assert watch.stuck_in() is None
    with watch.over("outer"):
        work(watch, clock, 1.0)
        clock.now += FIRST_SECONDS - 1
        assert watch.stuck_in() is None
        clock.now += 2
        assert watch.stuck_in() == "outer, for 601 seconds"
