"""Trackers: the lines of a run, sent as they are written to where people watch many runs.

    reinforce-lite train --log.trackers trackio wandb tensorboard

The names are those of steps.jsonl, and `eval/test/strict` and so on for evaluations; we send numbers and the
config, no question, answer or terminal text (trackio and wandb add what they read of the machine). A run
that is resumed goes on as the same run there.
A tracker that can't start ends the command before any work; one that fails later is left out with a note,
and training goes on. What a tracker prints is kept off standard output.
"""

import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol

from reinforce_lite.callbacks.base import Callback
from reinforce_lite.config import Config
from reinforce_lite.errors import UsageError, missing_extra
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.runlog.run import Line, Run
from reinforce_lite.types import Group
from reinforce_lite.utils.atomic import write_atomically
from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)

PROJECT = "reinforce-lite"
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")  # in the names of environment variables


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step; several calls for one step add up."""

    def close(self, failed: bool) -> None:
        """Send what is not sent yet, and end; `failed` is a run that an exception or a signal ended."""


class Trackio:
    def __init__(self, run: Run, config: Config) -> None:
        self.trackio: Any = import_module("trackio")
        self.run = self.trackio.init(PROJECT, name=_own_name(run), config=_plain(config), resume="allow")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        self.trackio.finish()  # the run's own would be called again at exit, onto standard output


class Wandb:
    """It takes a step once: what a killed run sent after its last checkpoint comes again when it is resumed,
    and wandb keeps the first."""

    def __init__(self, run: Run, config: Config) -> None:
        wandb: Any = import_module("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=_own_name(run),
            name=run.path.name,
            config=_plain(config),
            dir=str(run.path),
            resume="allow",
            settings=wandb.Settings(console="off"),  # the terminal shows answers, which stay here
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class TensorBoard:
    def __init__(self, run: Run, config: Config) -> None:
        writer: Any = import_module("torch.utils.tensorboard").SummaryWriter
        done = max((line["step"] for line in run.steps), default=0)
        # What a killed run wrote after its last checkpoint is hidden, since it comes again.
        self.writer = writer(str(run.path / "tensorboard"), purge_step=done + 1)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self.writer.close()


TRACKERS: dict[str, Callable[[Run, Config], Tracker]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "tensorboard": TensorBoard,
}


def with_trackers(config: Config, run: Run, screen: Callback) -> Callback:
    """The screen, and with it the trackers that the config names, if any.

    Raises UsageError when one is not installed.
    """
    for name in config.log.trackers:
        try:
            import_module(name)
        except ImportError as error:
            raise missing_extra(name, f"the tracker {name}") from error
    return TrackerCallback(config, run, screen) if config.log.trackers else screen


class TrackerCallback(Callback):
    """A screen whose numbers trackers get as well. They start when it is entered and end when it is left."""

    def __init__(self, config: Config, run: Run, screen: Callback) -> None:
        self.config, self.run, self.screen = config, run, screen
        self.trackers: dict[str, Tracker] = {}

    def __enter__(self) -> "TrackerCallback":
        for name in self.config.log.trackers:
            self._start(name)
        self.screen.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.screen.__exit__(kind, error, trace)
        self._each(lambda tracker: tracker.close(failed=kind is not None))

    def started(self, config: Config, run: Run, step: int, device: str, left: Callable[[], float]) -> None:
        self.screen.started(config, run, step, device, left)

    def phase(self, name: str, total: int) -> None:
        self.screen.phase(name, total)

    def advance(self, finished: int) -> None:
        self.screen.advance(finished)

    def stepped(self, line: Line, groups: Sequence[Group]) -> None:
        self.screen.stepped(line, groups)
        self._each(lambda tracker: tracker.log(numbers(line), line["step"]))

    def evaluated(self, result: Evaluation) -> None:
        self.screen.evaluated(result)
        found = {f"eval/{result.split}/{name}": value for name, value in numbers(result.to_record()).items()}
        self._each(lambda tracker: tracker.log(found, result.step or 0))

    def finished(self, run: Run) -> None:
        self.screen.finished(run)

    def _start(self, name: str) -> None:
        try:
            with redirect_stdout(sys.stderr):
                self.trackers[name] = TRACKERS[name](self.run, self.config)
        except Exception as error:  # others' code and others' servers
            self._each(lambda tracker: tracker.close(failed=True))
            raise UsageError(
                f"the tracker {name} did not start: {_said(error)}",
                f"see that {name} works by itself (logged in, reachable) or leave it out of log.trackers; "
                f"then {self.run.resume_hint}",
            ) from error

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                with redirect_stdout(sys.stderr):
                    do(tracker)
            except Exception as error:  # others' code and others' servers: no reason to stop training
                del self.trackers[name]
                logger.warning("the tracker %s failed and gets nothing more: %s", name, _said(error))


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """What of a line is a number, but for the step, which is the place that the others are put at."""
    return {k: float(value) for k, value in line.items() if isinstance(value, int | float) and k != "step"}


def _own_name(run: Run) -> str:
    """The run's name with a mark of its own: a later run of the same name is another one to a tracker."""
    file = run.path / "tracker_mark"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:8])
    return f"{run.path.name}-{file.read_text()}"


def _plain(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)


def _said(error: Exception) -> str:
    """The error in one line, with the values of keys and tokens in the environment masked."""
    text = one_line_error(error, limit=sys.maxsize)  # cut after masking: half a secret matches no value
    for name, value in os.environ.items():
        secret = " ".join(value.split())  # as the line has it
        if len(secret) >= 8 and any(word in name.upper() for word in SECRET):
            text = text.replace(secret, "***")
    return text[:300]
