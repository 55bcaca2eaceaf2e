"""The time of a run: how long things take, and whether another step fits before the hours are over.

A run with `train.hours` ends within them, evaluated and saved: the time that the final evaluations and saves
need is set aside, as it was measured most recently. Only a first step without a dry run may end later, since
nothing tells how long it takes. All times are seconds; moments are those of `utils.clock.now`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, nan

from reinforce_lite.errors import UsageError
from reinforce_lite.utils import clock
from reinforce_lite.utils.program import command_line
from reinforce_lite.utils.text import duration

MARGIN = 1.2  # measured times vary
EXIT_SECONDS = 3.0  # to end the process
MIN_DRY_RUN_SECONDS = 900.0  # with less time than this left there is no dry run
DISK_BYTES_PER_SECOND = 100e6  # until a save has been measured


@dataclass(slots=True)
class TimeBudget:
    """Measured durations, and when everything must be done."""

    end: float | None
    """The moment at which everything must be done; None: only the number of steps is limited."""
    durations: dict[str, float] = field(default_factory=dict)
    """Seconds of each kind of evaluation and save: the latest one's, or an estimate before the first."""
    step_seconds: list[float] = field(default_factory=list)
    """Of each step."""
    dry_run_seconds: float = 0.0
    """0 if there was no dry run."""
    every: Mapping[str, int] = field(default_factory=dict)
    """After how many steps a kind recurs, by its name in `durations`; the others happen once, at the end."""

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Record how long the block takes as a duration of this name."""
        start = clock.now()
        yield
        self.durations[name] = clock.now() - start

    @property
    def allows_dry_run(self) -> bool:
        """Whether there is time for a dry run, which can take as long as several steps."""
        return self.end is None or self.end - clock.now() >= MIN_DRY_RUN_SECONDS

    @property
    def finish_seconds(self) -> float:
        """The final evaluations and saves, and the end of the process."""
        return MARGIN * sum(self.durations.values()) + EXIT_SECONDS

    def allows_step(self, due: Sequence[str] = ()) -> bool:
        """Whether what is `due` first, one more step and the finish fit into the time.

        A first step is expected to take as long as the dry run. Without one its time is unknown, and none is
        set aside.
        """
        if self.end is None:
            return True
        step = max(self.step_seconds[-5:], default=self.dry_run_seconds)
        due_seconds = sum(self.durations.get(name, 0.0) for name in due)
        return clock.now() + MARGIN * (due_seconds + step) + self.finish_seconds <= self.end

    def refusal(self, run_name: str) -> UsageError:
        """For a run without time for its first step: what the end needs, and hours that are enough."""
        measured = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.durations.items())
        hours = ceil((self.finish_seconds + self.dry_run_seconds) / 180) / 10  # twice as much, in tenths
        resume = command_line("train", "--run", run_name, "--resume", f"--train.hours {hours}")
        return UsageError(
            f"train.hours leaves no time for a step and the final evaluations and saves ({measured})",
            f"the evaluations so far are kept: {resume}; or start a new run with a smaller eval.n",
        )

    def eta(self, step: int, steps: int) -> float:
        """Seconds to the end of a run of `steps` when `step` is taken and what is due after it is not; nan
        until a step has been measured.
        """
        recent = self.step_seconds[-10:]
        if not recent:
            return nan
        needed = (steps - step) * sum(recent) / len(recent) + sum(self.durations.values())
        for name, every in self.every.items():  # the last one is counted above
            more = max(0, (steps - 1) // every - max(0, step - 1) // every)
            needed += more * self.durations.get(name, 0.0)
        return needed if self.end is None else max(0.0, min(needed, self.end - clock.now()))
