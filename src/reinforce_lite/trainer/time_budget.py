"""The time of a run: what things take, when it must be over, and whether another step fits before.

A run that was given some hours ends within them, evaluated and saved: what the last evaluations and saves
took when they were last measured is set aside. Every moment is in seconds of `now`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from reinforce_lite.utils import clock

MARGIN = 1.2  # what is measured varies
LEAVING = 3.0  # seconds to end the process
TRYING = 900.0  # seconds: with less than these no largest step is tried beforehand
DISK = 100e6  # bytes a second, until a save was measured


@dataclass(slots=True)
class TimeBudget:
    """What things take, and when all must be done."""

    end: float | None
    """None: whenever the steps are."""
    taken: dict[str, float] = field(default_factory=dict)
    """Seconds: of each kind of evaluation and save what the last one took, or before it a guess."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each step."""
    largest: float = 0.0
    """Seconds that the largest step took, so much of it as was tried beforehand."""

    @classmethod
    def of(
        cls,
        hours: float | None,
        began: float,
        saves: Mapping[str, int],
        evaluations: Mapping[str, float],
        steps: Sequence[float],
    ) -> "TimeBudget":
        """So many hours from `began`; `saves` are in bytes, and `evaluations` and `steps` what a run that
        goes on measured before."""
        guesses = {name: size / DISK for name, size in saves.items()}
        return cls(None if hours is None else began + 3600 * hours, guesses | dict(evaluations), list(steps))

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Note what something takes."""
        start = clock.now()
        yield
        self.taken[name] = clock.now() - start

    @property
    def allows_dry_run(self) -> bool:
        """Whether the largest step may be tried before the first: it can take as long as several."""
        return self.end is None or self.end - clock.now() >= TRYING

    @property
    def closing(self) -> float:
        """Seconds that the last evaluations and saves need."""
        return MARGIN * sum(self.taken.values()) + LEAVING

    def allows_step(self, due: Sequence[str] = ()) -> bool:
        """Whether what is `due` before it, one more step, and the closing fit. A first step is guessed to
        take as long as the one that was tried, or as the evaluations before it."""
        if self.end is None:
            return True
        step = max(self.steps[-5:], default=self.largest or sum(self.taken.values()))
        return (
            clock.now() + MARGIN * (sum(self.taken.get(d, 0.0) for d in due) + step) + self.closing
            <= self.end
        )

    def left(self, steps: int) -> float:
        """Seconds to the end of a run that has so many steps to go."""
        recent = self.steps[-10:] or [self.largest]
        needed = steps * sum(recent) / len(recent) + sum(self.taken.values())
        return needed if self.end is None else max(0.0, min(needed, self.end - clock.now()))
