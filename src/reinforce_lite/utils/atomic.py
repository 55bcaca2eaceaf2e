"""Write files and folders completely or not at all: under a temporary name, then renamed to the target."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(file: Path, text: str) -> None:
    """Replace a file by `text` in UTF-8. If several processes write concurrently, the last one wins."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        _flush(temporary)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target`, and rename it to `target` when the block succeeds.

    Its files are flushed to the disk first. If the block raises, the folder is removed and `target` stays as
    it was. What a killed process left behind is removed when the same target is replaced next. Not safe for
    concurrent writers of one target.
    """
    temporary, previous = (
        target.with_name(f".{target.name}.{suffix}") for suffix in ("incomplete", "previous")
    )
    for leftover in (temporary, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _flush(path)
        if target.exists():
            target.rename(previous)
        temporary.rename(target)
        _flush(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
