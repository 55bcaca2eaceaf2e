"""The run as every process but the main one holds it: its lines in memory, nothing on the disk.

The main process describes its run (`snapshot`), and the others make a `MirrorRun` of that. They may be on
machines that can't read its folder. They append the lines that the main process writes, except for times and
memory, which are their own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinforce_lite.config import Config
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run

READ_BACK = ("problem_id", "step", "strict", "fault")
"""Keys of rollouts.jsonl that a resumed run reads (rollout/selection.py)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process needs to know of a run that another one writes."""

    path: Path
    config: Config | None
    """None before the run has started."""
    files: dict[str, Record]
    """The JSON files, by name."""
    lines: dict[str, list[Record]]
    """Steps, evaluations, and READ_BACK of the rollouts."""


def snapshot(run: Run) -> Snapshot:
    """Describe a run. Raises UsageError for a damaged file."""
    rollouts = [{key: line.get(key) for key in READ_BACK} for line in run.read("rollouts")]
    lines = {"steps": run.steps, "evals": run.evals, "rollouts": rollouts}
    files = {"summary.json": run.summary, "first_prompt.json": run.first_prompt, "audit.json": run.audit}
    return Snapshot(run.path, run.config if run.started else None, files, lines)


class MirrorRun(Run):
    """A run that another process writes. It reads as that one reads, and writes nothing."""

    def __init__(self, seen: Snapshot) -> None:
        super().__init__(seen.path)
        self._config, self._files, self._records = seen.config, seen.files, seen.lines

    @property
    def started(self) -> bool:
        """Whether it had been started when it was described, or has been since."""
        return self._config is not None

    @property
    def config(self) -> Config:
        """The resolved config."""
        assert self._config
        return self._config

    def read(self, name: str) -> Iterator[Record]:
        """The records of NAME.jsonl."""
        return iter(self._records.get(name, ()))

    def append(self, name: str, *records: Record) -> None:
        """Keep what is read back while a run trains."""
        if name == "rollouts":
            records = tuple({key: record.get(key) for key in READ_BACK} for record in records)
        if name in self._records:
            self._records[name].extend(records)

    def rewind(self, step: int) -> None:
        """Forget the lines after `step`."""
        self._records = {
            name: [record for record in records if record["step"] <= step]
            for name, records in self._records.items()
        }

    def write_config(self, config: Config) -> None:
        """Keep the config; from now on the run counts as started."""
        self._config = config

    def _read_json(self, name: str, remedy: str = "") -> Record:
        return self._files.get(name, {})

    def write(self, name: str, text: str | bytes) -> None:
        """Do nothing: the main process does this."""

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep them; the main process writes them."""
        self._files[f"{name}.json"] = dict(values)

    def remove(self, name: str) -> None:
        """Forget the file; the main process removes it."""
        self._files.pop(name, None)

    def sync(self) -> None:
        """Do nothing: the main process does this."""

    def lock(self) -> None:
        """Do nothing: the main process does this."""

    def unlock(self) -> None:
        """Do nothing: the main process does this."""
