"""Ctrl-C, SIGTERM and a closed terminal: stop immediately, but never between the two halves of one change.

A signal raises Interrupted wherever the program is, except inside `uninterrupted()`, where it waits for the
end of the block. The trainer changes weights and logs only inside such blocks, so its state is always that of
the last finished step. A second Ctrl-C or SIGTERM ends the process immediately. A second signal does not if
it or the first is SIGHUP: a terminal that closes, or a logout, may send SIGHUP several times, or SIGTERM too.
If SIGHUP was ignored before, as under nohup, it stays ignored.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = "stopping after what is finished is saved; press Ctrl-C again to stop at once, without saving"
logger = logging.getLogger(__name__)


class Interrupted(BaseException):
    """A signal arrived. Not an Exception, so that `except Exception` does not swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int]]:
        return Interrupted, (self.signum,)  # it travels between processes


class SignalGuard:
    """Handles SIGINT, SIGTERM and SIGHUP while `listening()`, and answers the first with a notice.

    With `at_once` the first one ends the process: while modules are imported there is nothing to save, and
    many a module swallows what is raised in the middle of it. With `several` processes signals are raised in
    `interruptible()` blocks alone: one that leaves a transfer early would leave the others waiting in it.
    """

    def __init__(self, notice: str = STOPPING, at_once: bool = False, several: bool = False) -> None:
        self.notice, self.at_once, self.several = notice, at_once, several
        self._depth = int(several)
        self._notifier = threading.Thread(target=logger.warning, args=(notice,))
        self._received: int | None = None
        self._handled = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Install the handlers. Only a main thread can; in another thread signals are left as they are."""
        is_main = threading.current_thread() is threading.main_thread()
        signums = [signal.SIGINT, signal.SIGTERM] if is_main else []
        if is_main and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signums.append(signal.SIGHUP)
        previous = {signum: signal.signal(signum, self._handle) for signum in signums}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
            if self._notifier.ident:
                self._notifier.join()

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """A block that no signal cuts through; Interrupted is raised at its end."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        self.check()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block in which signals are raised as soon as they arrive, with several processes too."""
        self._depth -= self.several
        try:
            self.check()
            yield
        finally:
            self._depth += self.several

    def check(self) -> None:
        """Raise Interrupted for a signal that a block delayed, or a bare `except:` in a reward swallowed."""
        if self._received is not None and not self._depth and not self._handled:
            raise Interrupted(self._received)

    def mark_handled(self) -> None:
        """The program is stopping because of the signal: later blocks need not raise again."""
        self._handled = True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._received is None and not self.at_once:
            self._received = signum
            # In a thread: here the main thread may be in the middle of writing to the same stream.
            if self.notice:
                self._notifier.start()
        elif not self.at_once and signal.SIGHUP in {signum, self._received}:
            # SIGHUP, the lowest number, gives way to any other signal.
            self._received = max(signum, self._received or 0)
        else:
            if os.isatty(1):
                os.write(1, b"\x1b[?25h")  # show the cursor, which the live display hides
            os._exit(128 + signum)
        self.check()
