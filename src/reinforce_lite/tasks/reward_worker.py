"""Runs other people's code, a user's file or reasoning-gym's scorers, in worker processes within limits.

    task = FileTask(config)                       # config: the [task] section
    task.call("problems", "train")                # once, as long as it takes
    for position, outcome in task.score(items):   # many, each within task.reward_seconds and reward_memory

A worker (`worker_process.py`) is started once. Where it hangs, dies or takes too much memory, it is killed
with the processes that it has started, the completion that it was at has no reward, and those behind it go to
a new worker. Nothing that it prints or closes affects the trainer; what it prints is shown once.

Everything happens in the caller's thread, so that a signal handler can run, and raise, while it waits.

Omitted on purpose: isolation. The code has the user's rights, so this contains accidents and is no sandbox.
"""

import contextlib
import logging
import selectors
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import tomli_w

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.tasks.rewards import Outcome, outcome_from_json
from reinforce_lite.tasks.worker_process import Failure, Job, Worker
from reinforce_lite.types import Problem, Reward, Split
from reinforce_lite.utils.text import shorten

logger = logging.getLogger(__name__)

Outcomes = Generator[tuple[int, Outcome], None, None]
"""Outcomes, each with the position of its completion, in any order."""

TICK = 0.05  # seconds between two looks at time and memory
LOAD_SECONDS = 600.0  # to import a file, and to make its problems: they may come from the network
MAX_STARTS = 3  # in a row that fail
MAX_AHEAD = 16  # jobs that a worker has been sent
MAX_BATCH = 16  # completions in one call of a reward that takes several
MAX_PRINTED = 4_000  # bytes


class WorkerTask:
    """A task whose code runs in `task.reward_workers` workers, started when there is work for them.

    A subclass has `problems`, and says with `item` how a completion is described to a worker.
    """

    module = ""
    """Of this folder, with a function serve(config, about) for the worker."""
    about: str | None = None
    """What it needs besides the config."""
    splits: Sequence[Split] = ()
    """That a new worker prepares before its first job."""
    batch = 1
    """Completions per call of the reward."""

    def __init__(self, config: TaskConfig, name: str) -> None:
        self.config, self.name = config, name
        self._workers: list[Worker] = []
        self._has_started = False
        self._failed_starts = self._to_replace = 0
        self._replacing = self._next_look = 0.0
        self._printed, self._has_told = bytearray(), False
        weakref.finalize(self, _kill_all, self._workers)

    def item(self, problem: Problem, completion: str) -> list[Any]:
        """What a worker's `rewards` gets, as JSON values."""
        raise NotImplementedError

    def welcome(self, hello: Any) -> None:
        """Called with the greeting of each new worker; may raise."""

    def reward(self, problem: Problem, completion: str) -> Reward:
        """See `Task`. Raises ReinforceLiteError when the reward fails."""
        ((_, outcome),) = self.outcomes([(problem, completion)])
        if outcome.reward is None:
            raise ReinforceLiteError(f"the reward of {self.name} failed: {outcome.fault}")
        return outcome.reward

    def outcomes(self, pairs: Sequence[tuple[Problem, str]]) -> Outcomes:
        """The outcome of each problem and completion, with its position, in any order."""
        return self.score([self.item(problem, completion) for problem, completion in pairs])

    def start(self) -> None:
        """Start a worker, and wait until it is ready. Raises UsageError when the task does not load."""
        list(self._run(deque(), until_ready=True))

    def call(self, method: str, *arguments: Any) -> Any:
        """One call that may take long. Raises UsageError where it fails."""
        ((_, value),) = list(self._run(deque([Job(method, list(arguments), LOAD_SECONDS)])))
        if isinstance(value, Failure):
            where = f"{self.name}: {method}({', '.join(map(repr, arguments))}): " if value.ended else ""
            raise UsageError(where + value.cause, value.remedy)
        return value

    def score(self, items: Sequence[Any], method: str = "rewards") -> Outcomes:
        """The outcome of each item, with its position, in any order.

        Where a call for several items fails, each of them gets a call of its own. Raises ReinforceLiteError
        when workers can't be started.
        """

        def job(first: int, part: Sequence[Any], lost: float = 0.0) -> Job:
            return Job(method, [part], self.config.reward_seconds * len(part), first, lost)

        size = self.batch
        waiting = deque(job(i, items[i : i + size]) for i in range(0, len(items), size))
        for done, value in self._run(waiting):
            (part,) = done.arguments
            if not isinstance(value, Failure):
                yield from enumerate(map(outcome_from_json, value), start=done.first)
            elif len(part) == 1:
                yield done.first, Outcome(None, value.cause, done.lost + value.seconds)
            else:
                singles = [job(done.first + i, [item]) for i, item in enumerate(part)]
                singles[0].lost = value.seconds
                waiting.extendleft(reversed(singles))

    def close(self) -> None:
        """End all workers; the next call starts new ones."""
        _kill_all(self._workers)

    def _run(self, waiting: deque[Job], until_ready: bool = False) -> Iterator[tuple[Job, Any]]:
        """Each job with its value or a Failure, until nothing is waiting; more may be added meanwhile."""
        try:
            while waiting or until_ready or any(w.is_busy for w in self._workers):
                self._hand_out(waiting)
                now = self._wait()
                for worker in list(self._workers):
                    for job, value in worker.receive():
                        if job.method == "start":
                            self._greet(worker, value)
                        else:
                            yield job, value
                for worker, cause in self._failing(now):
                    yield from self._replace(worker, cause, waiting)
                until_ready = until_ready and not any(w.ready for w in self._workers)
        except BaseException:
            self.close()
            raise
        finally:
            self._tell_printed()

    def _hand_out(self, waiting: deque[Job]) -> None:
        """Start workers that are missing, and give jobs to those that are ready."""
        for worker in list(self._workers):
            if not worker.running and worker.process.poll() is not None:  # nobody's fault
                self._remove(worker)
        needed = sum(w.is_busy for w in self._workers) + len(waiting)
        while len(self._workers) < max(1, min(needed, self.config.reward_workers)):
            config = tomli_w.dumps(self.config.model_dump(mode="python"))  # TOML has dates
            what = [sys.path, self.module, config, self.about, list(self.splits)]
            self._workers.append(Worker(Job("start", what, LOAD_SECONDS)))
        ready = [w for w in self._workers if w.ready]
        # Few at the end: what is behind a job that hangs waits, although other workers may be free.
        ahead = min(MAX_AHEAD, -(-len(waiting) // max(1, 2 * len(ready))))
        for worker in ready:
            while waiting and len(worker.running) < ahead and worker.flush():
                worker.send(waiting.popleft())

    def _wait(self) -> float:
        """Wait for replies or output, at most a TICK; read the output. Returns the time."""
        with selectors.PollSelector() as selector:
            for worker in self._workers:
                selector.register(worker.replies, selectors.EVENT_READ)
                if not worker.is_mute:
                    selector.register(worker.output, selectors.EVENT_READ, worker)
                if not worker.flush():
                    selector.register(worker.jobs, selectors.EVENT_WRITE)
            for key, _ in selector.select(TICK):
                if key.data:
                    self._keep_printed(key.data.read_output())
        return time.monotonic()

    def _greet(self, worker: Worker, value: Any) -> None:
        """After its start: the worker is ready, or could not load the task."""
        if isinstance(value, Failure):
            self._remove(worker)
            self._count_failed_start(value)
            return
        self.welcome(value)
        worker.ready = self._has_started = True
        self._failed_starts = 0
        if self._to_replace:
            self._to_replace -= 1
            self._replacing += time.monotonic() - worker.created

    def _failing(self, now: float) -> Iterator[tuple[Worker, str]]:
        """Workers that must be ended at this time, and why."""
        look = now >= self._next_look
        if look:
            self._next_look = now + TICK
        for worker in [w for w in self._workers if w.running]:
            job, limit = worker.running[0], self.config.reward_memory
            if worker.ended:
                with contextlib.suppress(subprocess.TimeoutExpired):  # a traceback may still be printed
                    worker.process.wait(1)
                self._keep_printed(worker.read_output())
                yield worker, f"its process {worker.how_it_ended()}"
            elif now - worker.since > job.seconds:
                yield worker, f"it took longer than {job.seconds:g} seconds"
            elif look and worker.memory() > limit * 1e9:
                yield worker, f"it took more memory than task.reward_memory = {limit:g} GB"

    def _replace(self, worker: Worker, cause: str, waiting: deque[Job]) -> Iterator[tuple[Job, Failure]]:
        """End a worker. The job that it was at has failed, those behind it wait again."""
        job, *others = worker.running
        seconds = time.monotonic() - worker.since
        self._remove(worker)
        waiting.extendleft(reversed(others))
        if job.method == "start":
            self._count_failed_start(Failure(cause, ended=True))
        else:
            self._to_replace += 1
            seconds, self._replacing = seconds + self._replacing, 0.0
            yield job, Failure(cause, ended=True, seconds=seconds)

    def _count_failed_start(self, failure: Failure) -> None:
        self._failed_starts += 1
        cause = f"{self.name}: {failure.cause}" if failure.ended else failure.cause
        if not self._has_started:
            raise UsageError(cause, failure.remedy)
        if self._failed_starts >= MAX_STARTS:
            raise ReinforceLiteError(
                f"the worker process of the reward can't be started again: {cause}",
                failure.remedy or "fix the task, then continue with --resume",
            )

    def _remove(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._keep_printed(worker.read_output())
        worker.kill()

    def _keep_printed(self, output: bytes) -> None:
        self._printed += output[: MAX_PRINTED - len(self._printed)]

    def _tell_printed(self) -> None:
        if self._printed.strip() and not self._has_told:
            self._has_told = True
            text = self._printed.decode(errors="replace")
            logger.warning("%s printed (shown this once only): %s", self.name, shorten(text, 400))


def _kill_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().kill()
