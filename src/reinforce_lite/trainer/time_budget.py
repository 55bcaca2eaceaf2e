"""The time of a run: how long things take, and whether another step fits before the hours are over.

A run with `train.hours` ends within them, evaluated and saved: the time that the final evaluations and saves
need is set aside, as it was measured most recently. All times are seconds; moments are those of
`utils.clock.now`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import nan

from reinforce_lite.utils import clock

MARGIN = 1.2  # measured times vary
EXIT_SECONDS = 3.0  # to end the process
DRY_RUN_SECONDS = 900.0  # with less time than this left there is no dry run
DISK_BYTES_PER_SECOND = 100e6  # until a save has been measured


@dataclass(slots=True)
class TimeBudget:
    """Measured durations, and when everything must be done."""

    end: float | None
    """The moment at which everything must be done; None: only the number of steps is limited."""
    durations: dict[str, float] = field(default_factory=dict)
    """Seconds of each kind of evaluation and save: the latest one's, or an estimate before the first."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each step."""
    dry_run: float = 0.0
    """Seconds of the dry run; 0 if there was none."""

    @classmethod
    def create(
        cls,
        hours: float | None,
        start: float,
        save_bytes: Mapping[str, int],
        evaluations: Mapping[str, float],
        steps: Sequence[float],
    ) -> "TimeBudget":
        """`hours` from the moment `start`; `evaluations` and `steps` are what a resumed run measured
        before.
        """
        estimates = {name: size / DISK_BYTES_PER_SECOND for name, size in save_bytes.items()}
        end = None if hours is None else start + 3600 * hours
        return cls(end, estimates | dict(evaluations), list(steps))

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Record how long the block takes as a duration of this name."""
        start = clock.now()
        yield
        self.durations[name] = clock.now() - start

    @property
    def allows_dry_run(self) -> bool:
        """Whether there is time for a dry run, which can take as long as several steps."""
        return self.end is None or self.end - clock.now() >= DRY_RUN_SECONDS

    @property
    def finish_seconds(self) -> float:
        """What the final evaluations and saves need."""
        return MARGIN * sum(self.durations.values()) + EXIT_SECONDS

    def allows_step(self, due: Sequence[str] = ()) -> bool:
        """Whether what is `due` first, one more step and the finish fit into the time.

        A first step is expected to take as long as the dry run, or else as long as everything in `durations`.
        """
        if self.end is None:
            return True
        step = max(self.steps[-5:], default=self.dry_run or sum(self.durations.values()))
        due_seconds = sum(self.durations.get(name, 0.0) for name in due)
        return clock.now() + MARGIN * (due_seconds + step) + self.finish_seconds <= self.end

    def eta(self, steps: int) -> float:
        """Seconds to the end of a run with `steps` steps to go; nan until a step has been measured."""
        recent = self.steps[-10:]
        if not recent:
            return nan
        needed = steps * sum(recent) / len(recent) + sum(self.durations.values())
        return needed if self.end is None else max(0.0, min(needed, self.end - clock.now()))
