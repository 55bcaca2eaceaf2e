"""Files and folders that are written whole or not at all."""

import os
from pathlib import Path


def write_atomically(file: Path, text: str) -> None:
    """Write a file whole or not at all; of several processes at once, the last one's stays."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with beside.open("w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
