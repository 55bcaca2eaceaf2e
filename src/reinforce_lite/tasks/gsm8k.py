"""GSM8K: 8,792 grade-school word problems, from a local folder or the Hugging Face hub.

    reinforce-lite train --task.name gsm8k                       # needs the extra "hub"
    reinforce-lite train --task.name gsm8k --task.path ./gsm8k   # train.jsonl and test.jsonl

It comes as train and test; about 6% of train are held out for validation, by a hash.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reinforce_lite import config
from reinforce_lite.tasks import hub, jsonl
from reinforce_lite.tasks import tables as rows
from reinforce_lite.tasks.base import NumberTask

HUB_NAME = "openai/gsm8k:main"


def load(section: config.Task) -> NumberTask:
    """The task, from the folder `section.path` or from the hub."""
    tables = _local(Path(section.path).expanduser()) if section.path else _from_hub()
    parts = {name: rows.problems(table, section.columns) for name, table in tables.items()}
    return rows.split(parts["train"], test=parts["test"], seed=section.seed)


def _local(folder: Path) -> dict[str, rows.Table]:
    return {name: _numbered(name, jsonl.table(folder / f"{name}.jsonl")) for name in ("train", "test")}


def _from_hub() -> dict[str, rows.Table]:
    found = hub.tables(HUB_NAME)
    return {name: _numbered(name, found[name]) for name in ("train", "test")}


def _numbered(name: str, table: rows.Table) -> rows.Table:
    """Ids by row number, from 0 as in the hub's viewer: its rows bring none."""

    def numbered() -> Iterable[tuple[int, Any]]:
        for index, (number, row) in enumerate(table.rows):
            yield number, row | {"id": f"gsm8k-{name}-{index}"} if isinstance(row, dict) else row

    return rows.Table(table.name, table.stem, numbered(), table.unit)
