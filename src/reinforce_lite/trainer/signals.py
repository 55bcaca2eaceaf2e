"""Ctrl-C and SIGTERM: stop at once, but never between the two halves of one change.

A signal raises Interrupted where the program happens to be, except inside `whole()`: there it waits
for the block's end. The trainer changes weights and logs only inside such blocks, so wherever it is
interrupted its state is that of the last finished step. A second signal leaves at once.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal came. Not an Exception: no broad except may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class SignalGuard:
    """Handles SIGINT and SIGTERM while `listening()`."""

    def __init__(self) -> None:
        self._whole = 0
        self._came: int | None = None
        self._stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Install the handlers; only a program's main thread can, elsewhere signals stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signums = (signal.SIGINT, signal.SIGTERM)
        before = {signum: signal.signal(signum, self._handle) for signum in signums}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A block that a signal does not cut through."""
        self._whole += 1
        try:
            yield
        finally:
            self._whole -= 1
        self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal came and is not dealt with: it waited, or a reward swallowed it."""
        if self._came is not None and not self._whole and not self._stopping:
            raise Interrupted(self._came)

    def stopping(self) -> None:
        """The signal is being dealt with: what is whole from now on need not end with it again."""
        self._stopping = True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._came is not None:
            if os.isatty(1):
                os.write(1, b"\x1b[?25h")  # the live display hides the cursor
            os._exit(128 + signum)
        self._came = signum
        self.check()
