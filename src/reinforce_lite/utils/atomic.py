"""Write files and folders completely or not at all: under a temporary name, then renamed to the target.

Everything that a run keeps is written by one of these functions. What a killed process leaves has one of
these names, which `clean_leftovers` knows:

    .NAME.PROCESS.new    a file that was being written
    .NAME.incomplete     a folder that was being written, or removed
    .NAME.previous       a folder that was being replaced
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(file: Path, text: str | bytes) -> None:
    """Replace a file by `text` in UTF-8. If several processes write concurrently, the last one wins."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        temporary.write_bytes(text.encode() if isinstance(text, str) else text)
        flush(temporary)
        temporary.replace(file)
        flush(file.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_whole(file: Path, text: str) -> None:
    """Add `text` in UTF-8 to the end of a file. If that fails halfway, the part is cut off again."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        end, rest = os.fstat(descriptor).st_size, memoryview(text.encode())
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target`, and rename it to `target` when the block succeeds.

    Its files are flushed to the disk first, and have the mode of any new file: safetensors gives its own to
    their owner alone. If the block raises, the folder is removed and `target` stays as it was. What a killed
    process left behind is removed when the same target is replaced next. Not safe for concurrent writers of
    one target.
    """
    temporary, previous = _incomplete(target), target.with_name(f".{target.name}.previous")
    for leftover in (temporary, previous):
        _clean(leftover)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            if path.is_file():
                path.chmod(temporary.stat().st_mode & 0o666)
            flush(path)
        if target.exists():
            target.rename(previous)
        temporary.rename(target)
        flush(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def remove_folder(target: Path) -> None:
    """Remove a folder, if it exists. A kill leaves all of it or nothing under its name."""
    if target.exists():
        _clean(_incomplete(target))
        target.rename(_incomplete(target))
        _clean(_incomplete(target))


def clean_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder, and put back what one of them was about to replace.

    The files of another process that still runs stay: it may write a report.
    """
    for path in list(folder.iterdir()) if folder.exists() else []:
        if path.name.startswith(".") and path.suffix in (".new", ".incomplete", ".previous"):
            _clean(path)


def _clean(leftover: Path) -> None:
    target = leftover.with_name(leftover.stem[1:])
    if leftover.suffix == ".previous" and leftover.exists() and not target.exists():
        leftover.rename(target)
    elif leftover.is_dir():
        shutil.rmtree(leftover)
    elif not _is_alive(leftover.stem.rpartition(".")[2]):
        leftover.unlink(missing_ok=True)


def _incomplete(target: Path) -> Path:
    return target.with_name(f".{target.name}.incomplete")


def _is_alive(process: str) -> bool:
    """Whether another process has this number. In a container successive processes may have the same one."""
    try:
        if int(process) == os.getpid():
            return False
        os.kill(int(process), 0)
    except (ValueError, OverflowError, OSError) as error:
        return isinstance(error, PermissionError)  # it belongs to another user
    return True


def flush(path: Path) -> None:
    """Have the system write a file or folder to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
