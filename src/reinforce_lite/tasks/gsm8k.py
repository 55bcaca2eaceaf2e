"""GSM8K: 8,792 grade-school word problems, from a local folder or the Hugging Face hub.

    reinforce-lite train --task.name gsm8k                       # needs the extra "hub"
    reinforce-lite train --task.name gsm8k --task.path ./gsm8k   # train.jsonl and test.jsonl

The data set has a train and a test split; about 6% of train are held out for validation, by a hash.
Source: Cobbe et al. 2021, https://arxiv.org/abs/2110.14168.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.tasks.hub import load_tables
from reinforce_lite.tasks.jsonl import read_table
from reinforce_lite.tasks.tables import Table, read_problems, split_train

HUB_NAME = "openai/gsm8k:main"


def load(config: TaskConfig) -> NumberTask:
    """The task, from the folder `config.path` or from the hub. Raises UsageError when it can't be read."""
    tables = _read_folder(Path(config.path).expanduser()) if config.path else load_tables(HUB_NAME)
    train, test = (
        read_problems(_with_ids(split, tables[split]), config.columns) for split in ("train", "test")
    )
    return split_train(train, test=test, seed=config.seed, answer_format=config.answer_format)


def _read_folder(folder: Path) -> dict[str, Table]:
    return {split: read_table(folder / f"{split}.jsonl") for split in ("train", "test")}


def _with_ids(split: str, table: Table) -> Table:
    """The table with ids by row number, from 0 as in the hub's viewer: its rows have no ids."""

    def rows() -> Iterator[tuple[int, Any]]:
        for index, (number, row) in enumerate(table.rows):
            yield number, row | {"id": f"gsm8k-{split}-{index}"} if isinstance(row, dict) else row

    return Table(table.name, table.stem, rows(), table.unit)
