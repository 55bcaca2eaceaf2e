"""Errors for the user: one line of cause, one of remedy, and an exit status.

Only faults that a user can cause or fix are raised as these. A bug raises whatever it raises and
keeps its traceback.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal


class ReinforceLiteError(Exception):
    """Shown without a traceback: `cause` says what failed and where, `remedy` what to do."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}\n{self.remedy}" if self.remedy else self.cause

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: as in a terminal, no traceback."""
        return f"{type(self).__name__}: {self}".splitlines()


class UsageError(ReinforceLiteError):
    """Bad usage, config or data."""

    exit_code = 2


class FileError(ReinforceLiteError):
    """A file or folder can't be read or written: no space, no permission, a failing disk."""


class DoesNotFitError(ReinforceLiteError):
    """The run does not fit into the available memory."""

    exit_code = 3


class NotFiniteError(ReinforceLiteError):
    """Weights, gradients or log-probabilities held NaN or infinity, again after going back once."""


class SamplerGapError(ReinforceLiteError):
    """The engine samples from other weights than those that are trained, or computes them differently."""


class LostProcessError(ReinforceLiteError):
    """One of several processes died, froze, or failed with a bug."""


class StoppedError(ReinforceLiteError):
    """A signal ended the run after a checkpoint was saved. `exit_code` is 128 + the signal's number."""

    def __init__(self, signum: int, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type["StoppedError"], tuple[int, str, str]]:
        return StoppedError, (self.exit_code - 128, self.cause, self.remedy)  # it travels between processes


def missing_extra(extra: str, what: str) -> UsageError:
    """The error for a feature whose optional dependency is not installed."""
    return UsageError(
        f"{what} needs an optional dependency that is not installed",
        f'install it with: pip install "reinforce-lite[{extra}]"',
    )


_FILE_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some disk space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give this user access to it"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "create its folder first"),
    errno.EROFS: "make it writable",
    **dict.fromkeys((errno.EEXIST, errno.EISDIR), "move away what is there"),
    errno.ELOOP: "remove the link there, which leads back to itself",
}


@contextmanager
def explain_file_errors(action: Literal["read", "write"], path: Path) -> Iterator[None]:
    """Turn the operating system's errors inside the block into a FileError of one line.

    Libraries written in Rust (safetensors, tokenizers) raise exceptions of their own, with the system's error
    number in the message.
    """
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        refused = OSError(int(number[1]), os.strerror(int(number[1]))) if number else error
        if not isinstance(refused, OSError) or refused.errno == errno.ENOMEM:
            raise
        remedy = _FILE_REMEDIES.get(refused.errno or 0, "see that its disk works and is mounted")
        raise FileError(f"can't {action} {path}: {refused.strerror or refused}", remedy) from error
