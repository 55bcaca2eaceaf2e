"""Problems from JSON lines: one file, or a folder with a file for each split.

    {"question": "Ana has 3 pens and buys 4. How many now?", "answer": "7"}

    reinforce-lite train --task.name jsonl --task.path problems.jsonl

A folder holds train.jsonl, test.jsonl and optionally validation.jsonl. Missing splits are held out
of the training problems. `tables.py` says which rows are accepted.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.tasks.tables import BadRowError, Table, read_problems, split_train
from reinforce_lite.types import SPLITS, Problem
from reinforce_lite.utils.paths import expand_home, is_dir

logger = logging.getLogger(__name__)

_BOM = b"\xef\xbb\xbf"


def load(config: TaskConfig) -> NumberTask:
    """The task in the file or folder `config.path`. Raises UsageError when it can't be read."""
    if not config.path:
        raise UsageError("the jsonl task needs a file or folder", "for example --task.path problems.jsonl")
    path = expand_home(config.path)

    def read(file: Path) -> tuple[Problem, ...]:
        return read_problems(read_table(file), config.columns)

    if not is_dir(path):
        return split_train(read(path), seed=config.seed, answer_format=config.answer_format)
    if unread := sorted(file.name for file in path.glob("*.jsonl") if file.stem not in SPLITS):
        logger.warning(
            "%s has files that are not read, since only train, validation and test.jsonl are: %s",
            path,
            ", ".join(unread),
        )
    files = {split: path / f"{split}.jsonl" for split in SPLITS}
    found = {split: file for split, file in files.items() if split != "validation" or file.exists()}
    splits = _with_own_ids({split: read(file) for split, file in found.items()})
    return split_train(**splits, seed=config.seed, answer_format=config.answer_format)


def _with_own_ids(splits: dict[str, tuple[Problem, ...]]) -> dict[str, tuple[Problem, ...]]:
    """With the split before each id where splits share one: many data sets count from 0 in every split."""
    ids = [problem.id for problems in splits.values() for problem in problems]
    if len(set(ids)) == len(ids):
        return splits
    return {
        split: tuple(replace(problem, id=f"{split}-{problem.id}") for problem in problems)
        for split, problems in splits.items()
    }


def read_table(path: Path) -> Table:
    """A file's lines, numbered from 1, without the blank ones. Raises UsageError when it can't be opened."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError for a NUL in the name
        raise UsageError(
            f"can't read {path}: {error.strerror if isinstance(error, OSError) else error}",
            "a folder needs train.jsonl and test.jsonl; task.path may also be one file",
        ) from None
    return Table(name=str(path), stem=path.stem, rows=_parse_lines(data.removeprefix(_BOM)))


def _parse_lines(data: bytes) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON text may hold U+2028 and the like unescaped.
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), object_pairs_hook=_read_object)
    except BadRowError as error:
        return error
    except UnicodeDecodeError:
        return BadRowError("not UTF-8", "save the file as UTF-8")
    except (ValueError, RecursionError):  # ValueError also for an int of more than 4,300 digits
        return BadRowError("not JSON", "each line is one JSON object")


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BadRowError(f"{repeated!r} twice", "keep one of two values of a key")
    return values
