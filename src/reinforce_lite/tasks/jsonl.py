"""Problems from JSON lines: one file, of which parts are held out, or a folder of files for the parts.

    {"question": "Ana has 3 pens and buys 4. How many now?", "answer": "7"}

    reinforce-lite train --task.name jsonl --task.path problems.jsonl

A folder holds train.jsonl, test.jsonl and maybe validation.jsonl. Which rows are accepted is told
in `tables.py`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks import tables
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.tasks.tables import read_problems, split_train
from reinforce_lite.types import Problem

_BOM = b"\xef\xbb\xbf"


def load(config: TaskConfig) -> NumberTask:
    """The task in the file or folder `config.path`."""
    if not config.path:
        raise UsageError("the jsonl task needs a file or folder", "for example --task.path problems.jsonl")
    path = Path(config.path).expanduser()

    def part(file: Path) -> tuple[Problem, ...]:
        return read_problems(read_table(file), config.columns)

    if not path.is_dir():
        return split_train(part(path), seed=config.seed)
    validation = path / "validation.jsonl"
    return split_train(
        part(path / "train.jsonl"),
        part(validation) if validation.exists() else (),
        part(path / "test.jsonl"),
        seed=config.seed,
    )


def read_table(path: Path) -> tables.Table:
    """A file's lines, the blank ones left out, numbered from 1."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"can't read {path}: {error.strerror}",
            "a folder needs train.jsonl and test.jsonl; task.path may also be one file",
        ) from None
    return tables.Table(name=str(path), stem=path.stem, rows=_lines(data.removeprefix(_BOM)))


def _lines(data: bytes) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON text may hold U+2028 and the like as they are.
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return tables.BadRow("not UTF-8", "save the file as UTF-8")
    except (ValueError, RecursionError):  # ValueError also for an int of more than 4,300 digits
        return tables.BadRow("not JSON", "each line is one JSON object")
