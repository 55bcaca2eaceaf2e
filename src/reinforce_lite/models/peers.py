"""What a process knows of the others of its run: counts that all share, and who is lost or stuck.

Each process counts its heartbeats in a store that the main process hosts. Whoever waits for the others
(`Processes.await_until`) looks at their heartbeats, so a process that dies or freezes is noticed by all that
wait. A process whose main thread is stuck would still count heartbeats, so it detects this itself
(models/watch.py), tells the others and ends.
"""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from reinforce_lite.errors import LostProcessError
from reinforce_lite.models.watch import Watch
from reinforce_lite.utils.text import one_line_error

HEARTBEAT_SECONDS = 1.0
LOST_SECONDS = 25.0
"""Seconds without a heartbeat after which a process counts as lost."""
IMPATIENT_SECONDS = 6.0
"""The same after an error or a signal: torchrun ends the others 30 seconds after one has died."""
NOTICE_SECONDS = 5.0
"""How long a process that is stuck waits for the main one to notice, before it ends itself."""
SAVING_SECONDS = 600.0
"""How long it then waits for the main process to save: when it leaves, torchrun ends the others."""


@dataclass(slots=True)
class Processes:
    """This process among the others."""

    store: Any
    """A store of torch.distributed, which all processes can reach."""
    rank: int
    size: int
    local_size: int
    """The processes on this machine."""
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context in which signals are raised; outside of a process's own work they wait."""
    rounds: int = 0
    """Exchanges so far."""
    roll_calls: int = 0
    """Calls of `can_transfer` after an error so far."""
    endings: int = 0
    """Calls of `fail_together` so far."""
    failing: bool = False
    """Whether all processes are raising an error that they exchanged: nothing is exchanged until they end."""
    lost: bool = False
    """Whether some process is lost: nothing can be exchanged any more."""
    gone: str = ""
    """What the others told of a lost process, if they did."""
    is_sharded: bool = False
    """Whether weights are sharded. After a loss the main process then has nothing to save, and this process
    must exit without waiting for it: other processes may be stuck in a transfer that fails only when this one
    exits."""
    left: bool = False
    """Whether this process has parted from the others."""
    watch: Watch = field(default_factory=Watch)
    heartbeats: dict[int, tuple[int, float]] = field(default_factory=dict)
    """The latest count of each process's heartbeats, and when this process first saw it."""

    def count(self, name: str, more: int = 0) -> int:
        """A count that all processes share, after adding to it.

        Raises LostProcessError if the machine that hosts it is lost.
        """
        try:
            return int(self.store.add(name, more))
        except RuntimeError as error:
            raise self.lose(f"the main process or its machine is gone: {one_line_error(error)}") from error

    def await_until(self, is_done: Callable[[], bool], *, patient: bool = True) -> None:
        """Wait until `is_done()`. Raises LostProcessError if a process is lost meanwhile."""
        pause, start = 0.001, time.monotonic()
        while not is_done():
            if time.monotonic() - start > HEARTBEAT_SECONDS:
                self.check_heartbeats(patient=patient)
            time.sleep(pause)
            pause = min(0.05, 1.5 * pause)

    def check_heartbeats(self, *, patient: bool = True) -> None:
        """Raises LostProcessError for a process without heartbeats for LOST_ or IMPATIENT_SECONDS."""
        patience = LOST_SECONDS if patient else IMPATIENT_SECONDS
        if self.gone:
            raise self.lose(self.gone)
        now = time.monotonic()
        for rank in set(range(self.size)) - {self.rank}:
            count = self.count(f"heartbeats/{rank}")
            known, moment = self.heartbeats.get(rank, (-1, now))
            if count != known:
                self.heartbeats[rank] = count, now
            elif now - moment > patience:
                raise self.lose(f"process {rank} has not answered for {patience:.0f} seconds")

    def reported_loss(self) -> str:
        """What the others told of a lost process, if they did. Raises RuntimeError if the store is gone."""
        if not self.gone and self.store.check(["gone"]):
            self.gone = self.store.get("gone").decode()
        return self.gone

    def lose_transfer(self, error: Exception) -> LostProcessError:
        """The error to raise where a transfer failed, with what another process told of the cause."""
        with contextlib.suppress(RuntimeError):
            if what := self.reported_loss():
                return self.lose(what)
        return self.lose(f"a transfer failed: {one_line_error(error)}")

    def lose(self, what: str) -> LostProcessError:
        """Tell the others that a process is lost; returns the error to raise."""
        self.lost = True
        with contextlib.suppress(RuntimeError):
            if not self.gone:
                self.store.set("gone", what)
            if self.rank == 0:
                self.store.add("noticed", 1)
        return LostProcessError(
            f"{what}, noticed by process {self.rank} of {self.size}", "see above what it printed last"
        )

    def end_together(self) -> None:
        """After an error: tell the others that this process has ended its work.

        All but the main process then wait until that one has ended its own, or has no heartbeats. Raises
        LostProcessError if the store is gone.
        """
        self.count(f"left/{self.endings}", 1)
        if self.rank == 0:
            self.count(self._ended, 1)
        else:
            self._await_main_end()

    @property
    def _ended(self) -> str:
        return f"ended/{self.endings}"

    def _await_main_end(self) -> None:
        """Wait until the main process has ended its work, or no longer lives."""
        if self.lost and self.is_sharded:
            return
        beats, moment = -1, time.monotonic()
        while not self.count(self._ended):
            latest, now = self.count("heartbeats/0"), time.monotonic()
            if latest != beats:
                beats, moment = latest, now
            elif now - moment > (IMPATIENT_SECONDS if self.lost else LOST_SECONDS):
                return
            time.sleep(0.05)

    def start_heartbeat(self) -> None:
        """Count heartbeats in a separate thread until `left` is set.

        The thread also reads whether another process was reported lost, and ends this process if it is stuck.
        """
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        has_store = True
        while not self.left:
            what = self.watch.stuck_in()
            try:
                if has_store and not what:
                    self.store.add(f"heartbeats/{self.rank}", 1)
                if has_store:
                    self.reported_loss()
            except RuntimeError:
                has_store, self.gone = False, "the main process or its machine is gone"
            if what:
                self._end_stuck(f"process {self.rank} is stuck in {what}")
            time.sleep(HEARTBEAT_SECONDS)

    def _end_stuck(self, what: str) -> None:
        """End this process, whose main thread hangs, once the main process has saved what there is."""
        # In a thread: what it is stuck in may be writing to this very stream.
        threading.Thread(target=_show_stuck, args=(what,), daemon=True).start()
        start = time.monotonic()
        with contextlib.suppress(RuntimeError):
            self.store.set("gone", what)
            while self.rank and not self.store.add(self._ended, 0):
                seconds = time.monotonic() - start
                if seconds > (SAVING_SECONDS if self.store.add("noticed", 0) else NOTICE_SECONDS):
                    break
                time.sleep(0.1)
        time.sleep(max(0.0, start + 2 * HEARTBEAT_SECONDS - time.monotonic()))  # until all could read it
        os._exit(1)


def _show_stuck(what: str) -> None:
    os.write(2, f"reinforce-lite: {what}; its threads are at:\n".encode())  # loggers are mute here
    faulthandler.dump_traceback(2)
