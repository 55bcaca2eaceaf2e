"""Interrupt a program at its writes: what a kill leaves behind, and errors of the operating system.

Python announces every file that it opens, renames or removes to its audit hooks, whichever library asks for it,
before it happens. Nothing that the program writes in Python can escape, and nothing of it is replaced by a fake.
What libraries write outside of Python (safetensors, tokenizers) is seen when the file is flushed to the disk.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

WRITING = os.O_WRONLY | os.O_RDWR


class Write(NamedTuple):
    """A change of a file system that is about to happen."""

    kind: str
    """open, flush, rename, remove, mkdir, rmdir or truncate."""
    path: Path


Act = Callable[[Write], None]
_watched: list[tuple[Path, Act]] = []  # at most one


@contextmanager
def watching(folder: Path, act: Act) -> Iterator[None]:
    """Call `act` before each change under a folder. What it raises, the change raises in its place."""
    _watched.append((folder.resolve(), act))
    try:
        yield
    finally:
        _watched.clear()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watched or not (write := _write_of(event, args)):
        return
    folder, act = _watched[0]
    if write.path.is_relative_to(folder):
        _watched.clear()  # `act` may write too
        try:
            act(write)
        finally:
            _watched.append((folder, act))


def _write_of(event: str, args: tuple[Any, ...]) -> Write | None:
    kind = event.removeprefix("os.")
    if event == "open":
        path, mode, flags = args
        kind = "open" if flags & WRITING else "flush" if mode is None else ""
    elif kind == "rename":
        path = args[1]
    elif kind in ("remove", "mkdir", "rmdir", "truncate"):
        path = args[0]
    else:
        kind = ""
    if not kind or not isinstance(path, str | bytes | os.PathLike):
        return None
    at = args[-1] if kind in ("remove", "rmdir") else -1  # rmtree names files relative to their open folder
    opened = Path(f"/proc/self/fd/{at}")
    base = opened.readlink() if at != -1 and opened.exists() else Path.cwd()
    write = Write(kind, base / os.fsdecode(path))
    changes_nothing = kind == ("mkdir" if os.path.lexists(write.path) else "remove")
    return None if changes_nothing else write


sys.addaudithook(_hook)


class Kills:
    """What a SIGKILL would leave of a folder: a copy of it before each write and in the middle of it.

    A kill changes nothing by itself, so the copy is exactly what a resume finds; and the state after a write is
    the one before the next. In the middle: the file that was opened or flushed last has half of what was added.
    """

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies = folder, copies
        self.states: list[Path] = []
        self.writes: list[Write] = []
        self._sizes: dict[Path, int] = {}

    def __call__(self, write: Write) -> None:
        for path, before in self._sizes.items():
            if path.is_file() and (size := path.stat().st_size) > before:
                copy = self._copy(f"{write.kind}-{write.path.name}-half-of-{path.name}")
                os.truncate(copy / path.relative_to(self.folder), (before + size) // 2)
        self._sizes = {}
        if write.kind == "open":
            self._sizes[write.path] = write.path.stat().st_size if write.path.exists() else 0
        elif write.kind == "flush" and write.path.is_file() and ".incomplete" in str(write.path):
            copy = self._copy(f"flush-half-of-{write.path.name}")
            os.truncate(copy / write.path.relative_to(self.folder), write.path.stat().st_size // 2)
        self._copy(f"{write.kind}-{write.path.name}")
        self.writes.append(write)

    def _copy(self, name: str) -> Path:
        copy = self.copies / f"{len(self.states):03}-{name}"
        if self.folder.exists():
            shutil.copytree(self.folder, copy)
        else:
            copy.mkdir(parents=True)
        self.states.append(copy)
        return copy


class Refuses:
    """Raises an OSError at the nth write, and from then on at each that needs what is missing.

    A full disk stays full, but lets files be renamed and removed; a folder that turned read-only lets nothing
    be changed; EIO happens once.
    """

    def __init__(self, number: int, at: int) -> None:
        self.number, self.left = number, at
        self.refused: Write | None = None

    def __call__(self, write: Write) -> None:
        self.left -= 1
        if self.left > 0 or (self.number == errno.EIO and self.refused):
            return
        if self.number == errno.ENOSPC and write.kind not in ("open", "flush", "mkdir"):
            return
        if self.number in (errno.EROFS, errno.EACCES) and write.kind == "flush":
            return
        self.refused = self.refused or write
        raise OSError(self.number, os.strerror(self.number), str(write.path))
