"""What listens to a run: the console, trackers, and whatever else wants to hear of its steps."""

from collections.abc import Callable, Sequence
from types import TracebackType

from reinforce_lite.config import Config
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.runlog.run import Line, Run
from reinforce_lite.types import Group


class Callback:
    """The listener of a run; this one shows nothing."""

    def __enter__(self) -> "Callback":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def started(self, config: Config, run: Run, step: int, device: str, left: Callable[[], float]) -> None:
        """A run begins, or goes on after `step`; `left` tells the seconds to its end at any time."""

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` completions begins; 0: its length is not known."""

    def advance(self, finished: int) -> None:
        """So many more completions are there."""

    def stepped(self, line: Line, groups: Sequence[Group]) -> None:
        """A step is done."""

    def evaluated(self, result: Evaluation) -> None:
        """An evaluation is done."""

    def finished(self, run: Run) -> None:
        """The run is done and saved."""


class Silent(Callback):
    """Shows nothing."""
