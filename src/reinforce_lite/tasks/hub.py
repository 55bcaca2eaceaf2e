"""Any Hugging Face data set with one question and one number a row; needs the extra "hub".

    reinforce-lite train --task.name hub --task.path openai/gsm8k:main

`path` is owner/name, owner/name:config or a local data set folder, `split` the part to train on;
its own test and validation splits are used where it has them, else parts are held out of train.
Left out on purpose: data sets that bring Python code, streaming, and slices of splits.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError, missing_extra
from reinforce_lite.tasks import tables
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.tasks.tables import read_problems, split_train
from reinforce_lite.types import Problem


def load(config: TaskConfig) -> NumberTask:
    """The task in the data set `config.path`."""
    if not config.path:
        raise UsageError("the hub task needs a data set", "for example --task.path openai/gsm8k:main")
    found = load_tables(config.path)
    if config.split not in found:
        near = get_close_matches(config.split, found, n=1)
        raise UsageError(
            f"{config.path} has no split {config.split!r}",
            f"did you mean {near[0]!r}?" if near else f"it has {', '.join(found)}",
        )

    def part(name: str) -> tuple[Problem, ...]:
        return read_problems(_with_split(name, found[name], config.columns), config.columns)

    given = {name: part(name) for name in ("validation", "test") if name in found and name != config.split}
    return split_train(
        part(config.split), given.get("validation", ()), given.get("test", ()), seed=config.seed
    )


def load_tables(path: str) -> dict[str, tables.Table]:
    """Every split of a data set, its rows numbered from 0."""
    data = _fetch(path)
    stem = Path(path.partition(":")[0]).name
    return {
        name: tables.Table(f"{path}, {name}", f"{stem}-{name}", enumerate(split), unit="row")
        for name, split in data.items()
    }


def _fetch(path: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError:
        raise missing_extra("hub", "a data set from the hub") from None
    name, _, part = (path, "", "") if Path(path).exists() else path.partition(":")
    try:
        with _quiet():
            found: Mapping[str, Any] = datasets.load_dataset(name, part or None)
    except Exception as error:  # what it raises is not written down: network, names, formats, disk
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"can't load the data set {path}: {first}",
            "check the name and the network; a data set on disk can be read with --task.name jsonl",
        ) from error
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of each retry: our one error says it."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _with_split(name: str, table: tables.Table, columns: Mapping[str, str]) -> tables.Table:
    """The ids with their split before them: many data sets count from 0 in each."""
    column = columns.get("id", "id")

    def prefixed() -> Iterator[tuple[int, Any]]:
        for number, row in table.rows:
            known = row.get(column)
            yield number, row if known is None else row | {column: f"{name}-{known}"}

    return tables.Table(table.name, table.stem, prefixed(), table.unit)
