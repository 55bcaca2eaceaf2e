"""One clock for everything that is timed."""

import time


def now() -> float:
    """Seconds on a clock that never jumps."""
    return time.perf_counter()


class Clock:
    """Times the phases of a step, in seconds."""

    def __init__(self) -> None:
        self.start = self.last = now()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a phase."""
        moment = now()
        self.laps[name], self.last = moment - self.last, moment

    @property
    def total(self) -> float:
        return now() - self.start
