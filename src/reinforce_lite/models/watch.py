"""Detect that a process makes no progress, so that the other processes of a run need not wait for ever.

    with watch.over("sampling"):
        ...                       # calls distributed.report_alive() with each token, layer, gradient

A process lives on while its main thread hangs, so heartbeats from a separate thread prove nothing. What
counts is that the main thread advances. How long it may take from one advance to the next is learned from
the work itself, since a layer takes a millisecond on a card and half a minute on a small machine: PATIENCE
times the longest of the last time, and at least STUCK_SECONDS. Only the first time, which may compile
kernels, has a limit of its own. Work that nobody watches (a reward, loading a model) may take as long as it
likes.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

STUCK_SECONDS = 45.0
"""Without an advance, after which watched work counts as stuck: the run is to end within a minute."""
FIRST_SECONDS = 600.0
"""The same where it is not known how long the work takes."""
PATIENCE = 8.0
"""An advance may take this many times the longest one of the last time."""


class _Work(NamedTuple):
    name: str
    since: float
    """The moment of the last advance."""
    limit: float
    longest: float = 0.0
    """Seconds of an advance so far."""


class Watch:
    """The watched work of one process: the main thread advances, another thread looks on."""

    def __init__(self) -> None:
        self._work: _Work | None = None  # replaced as a whole, since another thread reads it
        self._longest: dict[str, float] = {}

    @contextmanager
    def over(self, name: str, expected: float = 0.0) -> Iterator[None]:
        """Watch a block that should take `expected` seconds without an advance; 0: that is not known."""
        known = max(expected, self._longest.get(name, 0.0))
        limit = max(STUCK_SECONDS, PATIENCE * known) if known else FIRST_SECONDS
        outer, self._work = self._work, _Work(name, time.monotonic(), limit)
        try:
            yield
            self.advance()
            self._longest[name] = self._work.longest  # of this time alone: the first may compile kernels
        finally:
            self._work = outer and outer._replace(since=time.monotonic())

    def advance(self) -> None:
        """Something of the watched work is done."""
        if work := self._work:
            now = time.monotonic()
            self._work = work._replace(since=now, longest=max(now - work.since, work.longest))

    def stuck_in(self) -> str | None:
        """What the process is stuck in, and for how long; None where it advances or is not watched."""
        work = self._work
        seconds = time.monotonic() - work.since if work else 0.0
        return f"{work.name}, for {seconds:.0f} seconds" if work and seconds > work.limit else None
