"""Any Hugging Face data set with one question and one number per row; needs the extra "hub".

    reinforce-lite train --task.name hub --task.path openai/gsm8k:main

`path` is owner/name, owner/name:config or a local data set folder; `split` is the split to train on.
The data set's own test and validation splits are used; those that it lacks are held out of train.
Omitted on purpose: data sets that bring Python code, streaming, and slices of splits.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError, missing_extra
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.tasks.tables import Table, read_problems, split_train
from reinforce_lite.types import Problem
from reinforce_lite.utils.paths import exists, expand_home, local_or_hub_name
from reinforce_lite.utils.text import did_you_mean


def load(config: TaskConfig) -> NumberTask:
    """The task in the data set `config.path`. Raises UsageError when it or its split can't be read."""
    if not config.path:
        raise UsageError("the hub task needs a data set", "for example --task.path openai/gsm8k:main")
    tables = load_tables(config.path)
    if config.split not in tables:
        raise UsageError(
            f"{config.path} has no split {config.split!r}",
            did_you_mean(config.split, tables, f"it has {', '.join(tables)}"),
        )

    def read(split: str) -> tuple[Problem, ...]:
        return read_problems(_with_split_in_ids(split, tables[split], config.columns), config.columns)

    train = read(config.split)
    # A split that is trained on can't measure, even when it is called test.
    validation, test = (
        read(split) if split in tables and split != config.split else () for split in ("validation", "test")
    )
    return split_train(train, validation, test, seed=config.seed, answer_format=config.answer_format)


def load_tables(path: str) -> dict[str, Table]:
    """Every split of a data set, its rows numbered from 0. Raises UsageError when it can't be loaded."""
    dataset = _fetch(path)
    stem = Path(path.partition(":")[0]).name
    return {
        split: Table(f"{path}, {split}", f"{stem}-{split}", enumerate(_read_rows(rows)), unit="row")
        for split, rows in dataset.items()
    }


def _read_rows(rows: Any) -> Iterator[Any]:
    """The rows of a split. A number of a column with 16 or 32 bits gets the digits that those hold: as a
    double, 0.1 would be 0.10000000149.
    """
    features = getattr(rows, "features", None) or {}
    kinds = {name: getattr(feature, "dtype", "") for name, feature in features.items()}
    narrow = {name: np.dtype(kind).type for name, kind in kinds.items() if kind in ("float16", "float32")}
    for row in rows:
        shortest = {
            name: float(str(scalar(number)))
            for name, scalar in narrow.items()
            if isinstance(number := row.get(name), float) and not number.is_integer()  # an array is a list
        }
        yield row | shortest if shortest else row


def _fetch(path: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError:
        raise missing_extra("hub", "a data set from the hub") from None
    name, _, config = (path, "", "") if exists(expand_home(path)) else path.partition(":")
    try:
        with _without_retry_log():
            dataset: Mapping[str, Any] = datasets.load_dataset(local_or_hub_name(name), config or None)
    except Exception as error:  # its errors are undocumented: network, names, formats, disk
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"can't load the data set {path}: {first_line}",
            "check the name and the network; a data set on disk can be read with --task.name jsonl",
        ) from error
    return dataset


@contextmanager
def _without_retry_log() -> Iterator[None]:
    """Silence the log of each retry: our one error says what failed."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _with_split_in_ids(split: str, table: Table, columns: Mapping[str, str]) -> Table:
    """The table with its split before each id: many data sets count from 0 in every split."""
    column = columns.get("id", "id")

    def rows() -> Iterator[tuple[int, Any]]:
        for number, row in table.rows:
            row_id = row.get(column)
            yield number, row if row_id is None else row | {column: f"{split}-{row_id}"}

    return Table(table.name, table.stem, rows(), table.unit)
