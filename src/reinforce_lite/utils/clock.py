"""One clock for everything that is timed."""

import time


def now() -> float:
    """Seconds on a monotonic clock; only differences have a meaning."""
    return time.perf_counter()


class Clock:
    """Times the phases of a step, in seconds."""

    def __init__(self) -> None:
        self.start = self.last = now()
        self.laps: dict[str, float] = {}
        self.earlier = 0.0
        """Seconds of work that was done before."""

    def lap(self, name: str) -> None:
        """End a phase: add the seconds since the phase before to those under its name."""
        time_now = now()
        self.laps[name] = self.laps.get(name, 0.0) + time_now - self.last
        self.last = time_now

    def add(self, name: str, seconds: float) -> None:
        """Count work of a phase that was done before the clock was created."""
        self.laps[name] = self.laps.get(name, 0.0) + seconds
        self.earlier += seconds

    @property
    def total(self) -> float:
        """Seconds since the clock was created, and of work done before."""
        return now() - self.start + self.earlier
