"""One worker process, the pipes to it, and the jobs that it was sent.

A worker is a fresh Python (`reward_child.py`) in a session of its own, with empty standard input and pipes
for jobs and replies. `reward_worker.py` decides what it gets and when it is killed.

Known limits: a process that leaves the worker's session and loses its parent is not found. Memory is the
resident size of the worker and its descendants; files in /dev/shm that nobody maps are not counted.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from reinforce_lite.utils.text import shorten

CHILD = Path(__file__).with_name("reward_child.py")


@dataclass(slots=True)
class Job:
    """One call in a worker."""

    method: str
    arguments: list[Any]
    seconds: float
    """The longest it may take."""
    first: int = 0
    """The position of the first completion that it scores."""
    lost: float = 0.0
    """Seconds lost in an earlier call that failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job has no result."""

    cause: str
    remedy: str = ""
    ended: bool = False
    """Whether its worker was killed, or ended by itself."""
    seconds: float = 0.0
    """Time lost."""


class Worker:
    """A process, the jobs that it was sent and has not answered, and the pipes to it."""

    def __init__(self, start: Job) -> None:
        jobs, self.jobs = os.pipe()
        self.replies, replies = os.pipe()
        self.output, output = os.pipe()
        lifeline, self.lifeline = os.pipe()
        command = [sys.executable, "-P", "-u", str(CHILD), str(jobs), str(replies), str(lifeline)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(jobs, replies, lifeline),
                start_new_session=True,
            )
        finally:
            for descriptor in (jobs, replies, output, lifeline):
                os.close(descriptor)
        for descriptor in (self.jobs, self.replies, self.output):
            os.set_blocking(descriptor, False)
        self.running: deque[Job] = deque()
        self.ready = self.ended = self.is_mute = False
        self.created = self.since = time.monotonic()
        """`since`: when the first of the running jobs began."""
        self._last_words = b""
        self._unsent = bytearray()
        self._partial: list[bytes] = []
        self.send(start)

    @property
    def is_busy(self) -> bool:
        """Whether it has a job other than to start."""
        return self.ready and bool(self.running)

    def send(self, job: Job) -> None:
        """Queue a job."""
        if not self.running:
            self.since = time.monotonic()
        self.running.append(job)
        self._unsent += json.dumps([job.method, *job.arguments]).encode() + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Write what the pipe takes. False: something is left."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # an end is noticed by `receive`
            while self._unsent:
                del self._unsent[: os.write(self.jobs, self._unsent)]
        return not self._unsent

    def receive(self) -> Iterator[tuple[Job, Any]]:
        """The jobs that were answered, each with its value or a Failure."""
        has_ended = self.process.poll() is not None  # before the last replies are read
        lines = self._lines()
        self.ended |= has_ended
        for line in lines:
            try:
                reply = json.loads(line)
                value = reply["ok"] if "ok" in reply else Failure(*reply["error"])
                job = self.running.popleft()
            except (ValueError, TypeError, LookupError):  # only where code of others writes to the pipe
                self.ended = True
                return
            self.since = time.monotonic()
            if not self.ended:  # else they may be what the next job said before it died
                self._last_words = b""
            yield job, value

    def _lines(self) -> list[bytes]:
        lines: list[bytes] = []
        while True:
            try:
                chunk = os.read(self.replies, 2**18)
            except BlockingIOError:
                return lines
            if not chunk:
                self.ended = True
                return lines
            *whole, rest = chunk.split(b"\n")
            if whole:
                lines += [b"".join((*self._partial, whole[0])), *whole[1:]]
                self._partial.clear()
            self._partial.append(rest)

    def read_output(self) -> bytes:
        """What it has printed since the last call; at most 64 KiB."""
        with contextlib.suppress(BlockingIOError):
            output = os.read(self.output, 2**16)
            self.is_mute = not output
            self._last_words = (self._last_words + output)[-500:]
            return output
        return b""

    def memory(self) -> int:
        """Resident bytes of the process and its descendants; what they share counts for each."""
        total = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def kill(self) -> None:
        """End the process and what it has started, and close the pipes."""
        family = self._family()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a disk ends later
            self.process.wait(5)
        for descriptor in (self.jobs, self.replies, self.output, self.lifeline):
            os.close(descriptor)

    def how_it_ended(self) -> str:
        """In words, for a process that ended by itself, with the last line that it printed."""
        status = self.process.returncode
        if status is None:
            return "closed its pipes"
        last = shorten(self._last_words.decode(errors="replace").strip().rpartition("\n")[2], 120)
        how = f"by {_signal_name(-status)}" if status < 0 else f"with status {status}"
        return f"ended {how}" + (f" after it printed: {last}" if last else "")

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.Error:
            return []


def _signal_name(signum: int) -> str:
    return signal.Signals(signum).name if signum in set(signal.Signals) else f"signal {signum}"
