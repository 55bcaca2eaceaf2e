"""GSM8K: 8,792 grade-school word problems, from a local folder or the Hugging Face hub.

    reinforce-lite train --task.name gsm8k                       # needs the extra "hub"
    reinforce-lite train --task.name gsm8k --task.path ./gsm8k   # train.jsonl and test.jsonl

It comes as train and test; about 6% of train are held out for validation, by a hash.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.tasks import tables
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.tasks.hub import load_tables
from reinforce_lite.tasks.jsonl import read_table
from reinforce_lite.tasks.tables import read_problems, split_train

HUB_NAME = "openai/gsm8k:main"


def load(config: TaskConfig) -> NumberTask:
    """The task, from the folder `config.path` or from the hub."""
    tables = _local(Path(config.path).expanduser()) if config.path else _from_hub()
    parts = {name: read_problems(table, config.columns) for name, table in tables.items()}
    return split_train(parts["train"], test=parts["test"], seed=config.seed)


def _local(folder: Path) -> dict[str, tables.Table]:
    return {name: _numbered(name, read_table(folder / f"{name}.jsonl")) for name in ("train", "test")}


def _from_hub() -> dict[str, tables.Table]:
    found = load_tables(HUB_NAME)
    return {name: _numbered(name, found[name]) for name in ("train", "test")}


def _numbered(name: str, table: tables.Table) -> tables.Table:
    """Ids by row number, from 0 as in the hub's viewer: its rows bring none."""

    def numbered() -> Iterable[tuple[int, Any]]:
        for index, (number, row) in enumerate(table.rows):
            yield number, row | {"id": f"gsm8k-{name}-{index}"} if isinstance(row, dict) else row

    return tables.Table(table.name, table.stem, numbered(), table.unit)
