"""Trackers: a run's metrics, sent to services where people watch many runs.

    reinforce-lite train --log.trackers trackio wandb tensorboard

Metrics have the names of steps.jsonl; evaluations are `eval/test/strict` and so on. Only numbers and the
config are sent: no question, no completion, no terminal text (trackio and wandb add what they read of the
machine). A resumed run continues as the same run there. A tracker that can't start ends the command before
any work; one that fails later is dropped with a warning. What a tracker prints is kept off standard output.
"""

import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any, Self

from reinforce_lite.callbacks.base import Callback
from reinforce_lite.config import Config, TrackerName
from reinforce_lite.errors import FileError, UsageError, missing_extra
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.runlog.run import Run
from reinforce_lite.types import Group
from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)

PROJECT = "reinforce-lite"


class Tracker:
    """A service or file that numbers are logged to."""

    run: Any
    """As the service's library represents it."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step; several calls for one step add up."""
        self.run.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        """Send what is pending and end; `failed`: an exception or a signal ended the run."""


class Trackio(Tracker):
    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        self.trackio: Any = import_module("trackio")
        self.run = self.trackio.init(PROJECT, name=_unique_name(run), config=config, resume="allow")

    def close(self, failed: bool) -> None:
        self.trackio.finish()  # run.finish would be called again at exit and print to standard output


class Wandb(Tracker):
    """wandb accepts a step once: steps after a killed run's last checkpoint are sent again when the run is
    resumed, and wandb keeps the first values."""

    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        wandb: Any = import_module("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=_unique_name(run),
            name=run.path.name,
            config=config,
            dir=str(run.path),
            resume="allow",
            settings=wandb.Settings(console="off"),  # the terminal shows completions, which are not sent
        )

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class TensorBoard(Tracker):
    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        writer: Any = import_module("torch.utils.tensorboard").SummaryWriter
        done = max((line["step"] for line in run.steps), default=0)
        # Steps after a killed run's last checkpoint are hidden, since they are logged again.
        self.writer = writer(str(run.path / "tensorboard"), purge_step=done + 1)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self.writer.close()


TRACKERS: dict[TrackerName, Callable[[Run, Mapping[str, Any]], Tracker]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "tensorboard": TensorBoard,
}


def with_trackers(config: Config, callback: Callback) -> Callback:
    """The callback, with the trackers that the config names, if any.

    Raises UsageError when one is not installed.
    """
    for name in config.log.trackers:
        try:
            import_module(name)
        except ImportError as error:
            raise missing_extra(name, f"the tracker {name}") from error
    return TrackerCallback(callback) if config.log.trackers else callback


class TrackerCallback(Callback):
    """Passes everything on to another callback, and the numbers to trackers as well.

    Trackers start with the run and close when the callback is left. One that fails later is dropped with a
    warning: it is no reason to stop training.
    """

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self.trackers: dict[TrackerName, Tracker] = {}

    def __enter__(self) -> Self:
        self.callback.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self.callback.__exit__(*raised)
        self._for_each(lambda tracker: tracker.close(failed=raised[0] is not None))

    def started(self, config: Config, run: Run, step: int, device: str, eta: Callable[[], float]) -> None:
        values = config.model_dump(mode="json", exclude_none=True)
        for name in config.log.trackers:
            try:
                with redirect_stdout(sys.stderr):
                    self.trackers[name] = TRACKERS[name](run, values)
            except FileError:  # of a file of the run
                raise
            except Exception as error:  # a tracker's own code and its server may fail in any way
                raise UsageError(
                    f"the tracker {name} did not start: {one_line_error(error)}",
                    f"see that {name} works by itself (logged in, reachable) or remove it from log.trackers; "
                    f"then {run.resume_hint}",
                ) from error
        self.callback.started(config, run, step, device, eta)

    def phase(self, name: str, total: int = 0) -> None:
        self.callback.phase(name, total)

    def advance(self, finished: int) -> None:
        self.callback.advance(finished)

    def stepped(self, metrics: StepMetrics, groups: Sequence[Group]) -> None:
        self.callback.stepped(metrics, groups)
        self._for_each(lambda tracker: tracker.log(numbers(metrics.to_record()), metrics.step))

    def evaluated(self, result: Evaluation) -> None:
        self.callback.evaluated(result)
        values = {f"eval/{result.split}/{key}": value for key, value in numbers(result.to_record()).items()}
        self._for_each(lambda tracker: tracker.log(values, result.step or 0))

    def finished(self, run: Run) -> None:
        self.callback.finished(run)

    def _for_each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                with redirect_stdout(sys.stderr):
                    action(tracker)
            except Exception as error:  # as above
                del self.trackers[name]
                logger.warning(
                    "the tracker %s failed and receives nothing more: %s", name, one_line_error(error)
                )


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record, except the step, at which the others are logged."""
    return {k: float(value) for k, value in record.items() if isinstance(value, int | float) and k != "step"}


def _unique_name(run: Run) -> str:
    """The run's name with a random mark: a later run of the same name is another one to a tracker."""
    file = run.path / "tracker_mark"
    if not file.exists():
        run.write(file.name, uuid.uuid4().hex[:8])
    return f"{run.path.name}-{file.read_text()}"
