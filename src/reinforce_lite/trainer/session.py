"""One process's part of a run: it takes the lock, listens to signals, trains, and explains what fails.

run = train(config, open_run("mine"))
"""

import logging
from collections.abc import Callable
from contextlib import closing
from functools import partial

from reinforce_lite.callbacks.base import Callback
from reinforce_lite.callbacks.trackers import with_trackers
from reinforce_lite.config import Config
from reinforce_lite.errors import FileError, StoppedError
from reinforce_lite.models import distributed
from reinforce_lite.models.distributed import agree, fail_together, is_main, raise_signals_in
from reinforce_lite.models.policy import Policy
from reinforce_lite.runlog.mirror import MirrorRun, Snapshot, snapshot
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import open_run
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer.context import TrainingContext, prepare
from reinforce_lite.trainer.preflight import check_no_secrets, check_same_config, freeze_date
from reinforce_lite.trainer.signals import Interrupted, SignalGuard
from reinforce_lite.trainer.trainer import Trainer, out_of_memory_error
from reinforce_lite.types import NO_PERMISSIONS, Permissions
from reinforce_lite.utils import clock, memory

logger = logging.getLogger(__name__)


def open_together(config: Config, name: str, resume: bool) -> tuple[Config, Run]:
    """The main process's config and run; the other processes get a mirror of its run.

    An empty name is that of a new run. Raises UsageError as `open_run`.
    """
    if distributed.size() == 1:
        return config, open_run(name, resume, config.recipe)
    run: Run | None = None

    def open_and_describe() -> tuple[Config, Snapshot]:
        nonlocal run
        run = open_run(name, resume, config.recipe)
        return config, snapshot(run)

    config, seen = agree(open_and_describe)
    return config, run or MirrorRun(seen)


def train(  # noqa: PLR0913 -- the last two by name
    config: Config,
    run: Run,
    task: Task | None = None,
    callback: Callback | None = None,
    command: str = "",
    start: float | None = None,
    *,
    permissions: Permissions = NO_PERMISSIONS,
    base: Policy | None = None,
) -> Run:
    """Train in a run directory, from its latest checkpoint if there is one, to the final step.

    With `train.hours` it ends when they have passed since `start`, the moment at which the process started
    (by `utils.clock`; by default now).
    Raises UsageError for a config or data that differ from the checkpoint's, DoesNotFitError where memory is
    too small, FileError where a file can't be read or written, NotFiniteError where steps stay not finite,
    StoppedError after a signal.
    """
    memory.limit_fragmentation()
    start = clock.now() if start is None else start
    callback = (callback or Callback()) if is_main() else Callback()
    fail_together(partial(_train_locked, config, run, task, callback, command, start, permissions, base))
    return run


def _train_locked(  # noqa: PLR0913, PLR0917 -- as `train`
    config: Config,
    run: Run,
    task: Task | None,
    callback: Callback,
    command: str,
    start: float,
    permissions: Permissions,
    base: Policy | None,
) -> None:
    """Train while this process holds the run's lock."""
    run.lock()
    try:
        config = agree(lambda: freeze_date(config, run))
        check_no_secrets(config)
        check_same_config(config, run)
        if is_main():
            callback = with_trackers(config, callback)
        summary = run.summary
        if summary.get("stopped") == "steps" and summary["steps"] >= config.train.steps:
            logger.warning("%s is finished: %d steps are done", run.path, summary["steps"])
        else:
            make_context = partial(prepare, config, run, task, callback, start, permissions, base)
            _train_listening(make_context, run, callback, command, start)
    except FileError as error:
        error.remedy += f"; then {run.resume_hint}"
        raise
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        raise out_of_memory_error(error) from error
    finally:
        run.unlock()


def _train_listening(
    make_context: Callable[[], TrainingContext], run: Run, callback: Callback, command: str, start: float
) -> None:
    """Train while signals are handled: a signal stops the run at its last finished step."""
    signals, trainer = SignalGuard(several=distributed.size() > 1), None
    raise_signals_in(signals.interruptible)
    with signals.listening():
        try:
            with callback:
                try:
                    context = make_context()
                finally:
                    signals.check()  # a module that was being imported may have swallowed it, or failed
                with closing(context.pipeline):
                    trainer = Trainer(context, callback, signals, command, start)
                    trainer.train()
        except Interrupted as interrupted:  # while the model was loaded or trackers were closed
            if trainer is None:
                raise StoppedError(
                    interrupted.signum, f"stopped by {interrupted} before the first step", run.resume_hint
                ) from None
            trainer.stop(interrupted)
