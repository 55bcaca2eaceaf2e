"""What listens to a run: the console, the trackers, or a callback of your own.

A callback is entered before the model is loaded and left when the run has ended, however it ended.
"""

from collections.abc import Callable, Sequence
from typing import Self

from reinforce_lite.config import Config
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.runlog.run import Run
from reinforce_lite.types import Group

SAMPLING = "sampling completions"
UPDATING = "updating the weights"
"""The phases of every step; all other phases are rare."""
SELF_CHECK = "comparing log-probabilities with plain transformers"
DRY_RUN = "dry run of the largest step"
SAVING_CHECKPOINT = "saving a checkpoint"
SAVING_MODEL = "saving the model"
COMPARING_MERGED = "comparing the merged model with the adapter"


class Callback:
    """Hears of everything that happens in a run and does nothing; subclasses override what they need."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """`raised`: type, value and traceback of the exception that ended the run; each None without one."""

    def started(self, config: Config, run: Run, step: int, device: str, eta: Callable[[], float]) -> None:
        """The run starts, or resumes after `step`. `eta()`: seconds to its end, nan while unknown."""

    def phase(self, name: str, total: int = 0) -> None:
        """A phase starts; its name is for a person. It yields `total` completions, 0 if it yields none."""

    def advance(self, finished: int) -> None:
        """`finished` more completions of this phase are done; negative when some are discarded."""

    def stepped(self, metrics: StepMetrics, groups: Sequence[Group]) -> None:
        """A step is done and logged."""

    def evaluated(self, result: Evaluation) -> None:
        """An evaluation is done and logged."""

    def finished(self, run: Run) -> None:
        """The run is done and saved."""
