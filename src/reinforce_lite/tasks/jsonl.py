"""Problems from JSON lines: one file, of which parts are held out, or a folder of files for the parts.

    {"question": "Ana has 3 pens and buys 4. How many now?", "answer": "7"}

    reinforce-lite train --task.name jsonl --task.path problems.jsonl

A folder holds train.jsonl, test.jsonl and maybe validation.jsonl. Which rows are accepted is told
in `rows.py`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reinforce_lite import config
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks import tables as rows
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.types import Problem

_BOM = b"\xef\xbb\xbf"


def load(section: config.Task) -> NumberTask:
    """The task in the file or folder `section.path`."""
    if not section.path:
        raise UsageError("the jsonl task needs a file or folder", "for example --task.path problems.jsonl")
    path = Path(section.path).expanduser()

    def part(file: Path) -> tuple[Problem, ...]:
        return rows.problems(table(file), section.columns)

    if not path.is_dir():
        return rows.split(part(path), seed=section.seed)
    validation = path / "validation.jsonl"
    return rows.split(
        part(path / "train.jsonl"),
        part(validation) if validation.exists() else (),
        part(path / "test.jsonl"),
        seed=section.seed,
    )


def table(path: Path) -> rows.Table:
    """A file's lines, the blank ones left out, numbered from 1."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"can't read {path}: {error.strerror}",
            "a folder needs train.jsonl and test.jsonl; task.path may also be one file",
        ) from None
    return rows.Table(name=str(path), stem=path.stem, rows=_lines(data.removeprefix(_BOM)))


def _lines(data: bytes) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON text may hold U+2028 and the like as they are.
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return rows.BadRow("not UTF-8", "save the file as UTF-8")
    except (ValueError, RecursionError):  # ValueError also for an int of more than 4,300 digits
        return rows.BadRow("not JSON", "each line is one JSON object")
