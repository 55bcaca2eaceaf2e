"""The run directory: its files, its lines, its lock. Reports are made from it and from nothing else.

    runs/NAME/  config.toml  command.txt  machine.json  first_prompt.json  steps.jsonl
                audit.json  rollouts.jsonl  evals.jsonl  eval_rollouts.jsonl  checkpoints/step-N/
                model/  best/  adapter/  summary.json  report.html  rewound.jsonl  damaged.jsonl

Lines are appended as they happen, so a killed run has lost nothing that it wrote. A resumed run takes the
lines after its checkpoint out of its logs with `rewind`, into rewound.jsonl.
"""

import logging
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reinforce_lite.config import Config, dump_config, load_config
from reinforce_lite.errors import UsageError, explain_file_errors
from reinforce_lite.runlog.json_files import FILES, STEP_KEY
from reinforce_lite.runlog.notebook import run_html
from reinforce_lite.runlog.records import KEYS, Record, StepMetrics, parse_line
from reinforce_lite.utils.atomic import (
    append_whole,
    clean_leftovers,
    flush,
    remove_folder,
    write_atomically,
)
from reinforce_lite.utils.finite import from_json, to_json
from reinforce_lite.utils.paths import is_dir, is_file
from reinforce_lite.utils.program import command_line
from reinforce_lite.utils.secrets import mask, mask_all
from reinforce_lite.utils.text import did_you_mean, whole_characters

logger = logging.getLogger(__name__)

RUNS = Path("runs")
CHECKPOINT_NAME = re.compile(r"step-(\d+)")
"""Of an intact checkpoint's folder, with its step; a damaged one has more behind it."""


class Run:
    """A run directory. Reading needs no lock; take `lock()` before writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock")
        self._told: set[str] = set()  # logs whose damage was told

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        report = self.path / "report.html"
        link = os.path.relpath(report) if report.exists() else ""
        return run_html(self.name, self.summary.get("evals", {}), self.curve(), link)

    @property
    def name(self) -> str:
        """What `find_run` finds it by: the name under runs/, else the path."""
        return self.path.name if self.path.parent == RUNS else str(self.path)

    @property
    def started(self) -> bool:
        """Whether the directory holds a run that can be resumed."""
        return is_file(self.path / "config.toml")

    @property
    def resume_hint(self) -> str:
        """What to do about a run that ended early."""
        if self.started:
            python = f"rl.train(..., run={self.name!r}, resume=True)"
            command = command_line("train", "--run", shlex.quote(self.name), "--resume")
            return f"resume it, in Python with {python}, or: {command}"
        return "repeat the command"

    @property
    def config(self) -> Config:
        """The resolved config. Raises UsageError for a damaged file."""
        if self.started:
            _ = self.config_values  # an empty file would mean all defaults
        return load_config(str(self.path / "config.toml"))

    @property
    def config_values(self) -> Record:
        """config.toml as it is, also of another version. Raises UsageError for a damaged file."""
        file = self.path / "config.toml"
        remedy = "restore it from a copy: without the run's settings it can't be used or resumed"
        with explain_file_errors("read", file):
            text = file.read_bytes()
        try:
            values = tomllib.loads(text.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file} is damaged: {error}", remedy) from error
        if not values:
            raise UsageError(f"{file} is damaged: it is empty", remedy)
        return values

    @property
    def steps(self) -> list[Record]:
        """One record a step, under the names of steps.jsonl (docs/metrics.md)."""
        return list(self.read("steps"))

    @property
    def step_metrics(self) -> list[StepMetrics]:
        """The same, typed."""
        return [StepMetrics.from_record(record) for record in self.read("steps")]

    def missing_steps(self, until: int) -> int:
        """How many of the steps up to `until` have no line in steps.jsonl."""
        return until - len({record["step"] for record in self.read("steps") if record["step"] <= until})

    def curve(self, name: str = "accuracy/strict") -> list[tuple[int, float]]:
        """A metric over the steps, under its name in steps.jsonl, as (step, value).

        Steps in which it is null are omitted. Raises UsageError for a name that is no metric.
        """
        if name not in KEYS.values():
            remedy = did_you_mean(name, KEYS.values(), "docs/metrics.md lists them")
            raise UsageError(f"there is no metric {name!r}", remedy)
        values = ((line["step"], line.get(name)) for line in self.read("steps"))
        return [(step, value) for step, value in values if isinstance(value, int | float)]

    @property
    def evals(self) -> list[Record]:
        """One record an evaluation, under the names of evals.jsonl."""
        return list(self.read("evals"))

    @property
    def summary(self) -> Record:
        """summary.json; empty while the run has not ended. Raises UsageError for a damaged file."""
        return self._read_json("summary.json")

    @property
    def first_prompt(self) -> Record:
        """first_prompt.json; empty before the run has started. Raises UsageError for a damaged file."""
        return self._read_json("first_prompt.json")

    @property
    def audit(self) -> Record:
        """audit.json, what `audit --json` prints; empty if the recipe was not audited before the run.

        Raises UsageError for a damaged file.
        """
        return self._read_json("audit.json", "remove it: adaptive selection then goes without it")

    @property
    def machine(self) -> Record:
        """machine.json; empty before the run has started. Raises UsageError for a damaged file."""
        return self._read_json("machine.json")

    @property
    def model_step(self) -> int | None:
        """The step whose weights are in model/; None where there is none, or one of 0.1.0."""
        remedy = f"remove {self.path / 'model'}, which {command_line('export', self.name)} writes again"
        step: int | None = self._read_json("model/config.json", remedy).get(STEP_KEY)
        return step

    @property
    def is_finished(self) -> bool:
        """Whether the run has trained for all its steps or all its hours."""
        return self.summary.get("stopped") in ("steps", "hours")

    @property
    def model_progress(self) -> str:
        """Which step model/ is of, in a run that is not finished."""
        step = "an earlier step" if self.model_step is None else f"step {self.model_step}"
        return f"{step} of {self.config.train.steps}, unfinished"

    @property
    def export_command(self) -> str:
        """What writes the model of the last checkpoint, to a folder that is free; "" without a checkpoint."""
        if not any(CHECKPOINT_NAME.fullmatch(p.name) for p in self.path.glob("checkpoints/step-*")):
            return ""
        elsewhere = ["--to", shlex.quote(str(self.path / "exported"))] if self.has_model else []
        return command_line("export", shlex.quote(self.name), *elsewhere)

    @property
    def has_model(self) -> bool:
        """Whether there is a model/."""
        return is_dir(self.path / "model")

    @property
    def model_hint(self) -> str:
        """How to get the model of a run that has none."""
        if export := self.export_command:
            return f"write that of its last checkpoint: {export}; or {self.resume_hint}"
        return "its checkpoints are gone too: train a new run" if self.is_finished else self.resume_hint

    @property
    def before(self) -> Record | None:
        """Test accuracy of the untrained model: strict, lenient, n, intervals; None
        before the run has ended.
        """
        return self._accuracy("before")

    @property
    def after(self) -> Record | None:
        """Test accuracy of the trained model on the same problems; None before the run has ended."""
        return self._accuracy("after")

    def _accuracy(self, moment: str) -> Record | None:
        accuracy: Record | None = self.summary.get("evals", {}).get(moment)
        return accuracy

    def read(self, name: str) -> Iterator[Record]:
        """The records of NAME.jsonl. Damaged lines are omitted with a warning."""
        for number, _, record in self._lines(name):
            if record is not None:
                yield record
            elif name not in self._told:
                self._told.add(name)
                logger.warning(
                    "line %d of %s is damaged: it is ignored, and so are others like it",
                    *(number, self.path / f"{name}.jsonl"),
                )

    def _lines(self, name: str) -> Iterator[tuple[int, bytes, Record | None]]:
        """Number, bytes and record of each line, None for a damaged one.

        A last line that a kill cut short is omitted: the step or evaluation that wrote it is not finished.
        """
        file = self.path / f"{name}.jsonl"
        with explain_file_errors("read", file), suppress(FileNotFoundError), file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                record = parse_line(name, line)
                if record is not None or line.endswith(b"\n"):
                    yield number, line.rstrip(b"\n") + b"\n", record

    def append(self, name: str, *records: Record) -> None:
        """Add lines to NAME.jsonl, all or none, and hand them to the operating system."""
        file = self.path / f"{name}.jsonl"
        with explain_file_errors("write", file):
            append_whole(file, "".join(_line(record) for record in mask_all(records)))

    def sync(self) -> None:
        """Flush every log to the disk, before a checkpoint claims that its step is done."""
        with explain_file_errors("write", self.path):
            for path in (*self.path.glob("*.jsonl"), self.path):
                flush(path)

    def write(self, name: str, text: str | bytes) -> None:
        """Write a file of the run, completely or not at all."""
        with explain_file_errors("write", self.path / name):
            write_atomically(self.path / name, text)

    def remove(self, name: str) -> None:
        """Remove a file of the run, if it exists."""
        with explain_file_errors("write", self.path / name):
            (self.path / name).unlink(missing_ok=True)

    def write_config(self, config: Config) -> None:
        """Write config.toml; from then on the run can be resumed."""
        self.write("config.toml", dump_config(config))

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write NAME.json: "summary", "machine" (hardware, versions, the plan's bytes), "first_prompt" or
        "audit".
        """
        self.write(f"{name}.json", _line(mask_all(values), indent=2))

    def _read_json(self, name: str, remedy: str = "remove it: a resume writes it again") -> Record:
        file = self.path / name
        with explain_file_errors("read", file):
            if not file.exists():
                return {}
            text = file.read_bytes()
        try:
            record: Any = from_json(text)
        except ValueError as error:
            raise UsageError(f"{file} is damaged: {error}", remedy) from error
        if not isinstance(record, dict):
            raise UsageError(f"{file} is damaged: it holds no object", remedy)
        if wrong := FILES[name].wrong(record):
            raise UsageError(f"{file} is damaged: {wrong!r} is missing or has a wrong value", remedy)
        return record

    def write_command(self, command: str) -> None:
        """Write the command that starts the run; one that resumes it is not kept."""
        if command and not self.started:
            self.write("command.txt", whole_characters(mask(command)) + "\n")

    @property
    def command(self) -> str:
        """The command that started the run; "" where it was started from Python."""
        file = self.path / "command.txt"
        with explain_file_errors("read", file):
            return file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""

    def evaluated(self, step: int, split: str) -> bool:
        """Whether this evaluation is complete."""
        return any(e["step"] == step and e["split"] == split for e in self.read("evals"))

    def rewind(self, step: int) -> None:
        """Move lines after `step`, lines of unfinished evaluations and damaged lines out of the logs.

        Records go to rewound.jsonl, the text of damaged lines to damaged.jsonl.
        """
        for name in ("steps", "rollouts", "evals"):
            self._take_out(name, lambda record: record["step"] <= step)
        self._remove_best_after(step)
        complete = {(e["step"], e["split"]) for e in self.read("evals")}
        self._take_out("eval_rollouts", lambda record: (record["step"], record["split"]) in complete)

    def _remove_best_after(self, step: int) -> None:
        """Remove best/ if it is from a later step than this, or if its step can't be read."""
        best = self.path / "best"
        try:
            best_step = self._read_json("best/config.json").get(STEP_KEY) or 0
            if is_later := best_step > step:
                logger.warning("%s is of step %d, which is taken again: it is removed", best, best_step)
        except UsageError as error:
            logger.warning("%s: %s is removed", error.cause, best)
            is_later = True
        if is_later:
            with explain_file_errors("write", best):
                remove_folder(best)

    def _take_out(self, name: str, keep: Callable[[Record], bool]) -> None:
        log = self.path / f"{name}.jsonl"
        kept, rewound, damaged = [], [], []
        for number, line, record in self._lines(name):
            if record is None:
                text = line.decode(errors="backslashreplace").rstrip("\n")
                damaged.append({"file": log.name, "line": number, "text": text})
            elif keep(record):
                kept.append(line)
            else:
                rewound.append({"file": log.name, "record": record})
        self._set_aside("rewound.jsonl", rewound)
        self._set_aside("damaged.jsonl", damaged)
        if damaged:
            logger.warning("%d damaged lines of %s were moved to damaged.jsonl", len(damaged), log)
        with explain_file_errors("read", log):
            changed = log.exists() and log.read_bytes() != b"".join(kept)
        if changed:
            self.write(log.name, b"".join(kept))

    def _set_aside(self, name: str, records: list[Record]) -> None:
        """Add lines to a file atomically, and none twice: a kill may come before their log is rewritten."""
        if records:
            file = self.path / name
            with explain_file_errors("read", file):  # as bytes: a text may hold other line breaks
                before = file.read_bytes().splitlines(keepends=True) if file.exists() else []
            added = [_line(record).encode() for record in records]
            self.write(name, b"".join(dict.fromkeys([*before, *added])))

    def lock(self) -> None:
        """Reserve the directory for this process, and clean up what a killed one left in it.

        The operating system releases the lock of a process that dies, so no stale lock remains. Raises
        UsageError when another process holds it.
        """
        with explain_file_errors("write", self.path / ".lock"):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                remedy = "wait for it, or choose another --run name"
                raise UsageError(f"another process is training in {self.path}", remedy) from None
        with explain_file_errors("write", self.path):
            try:
                clean_leftovers(self.path)
                clean_leftovers(self.path / "checkpoints")
            except OSError:
                self._lock.release()
                raise

    def unlock(self) -> None:
        """Release the lock. A directory in which no run was started is removed: its name is free again."""
        self._lock.release()
        if not self.started:
            with suppress(OSError):  # it holds something else, or can't be written
                (self.path / ".lock").unlink(missing_ok=True)
                self.path.rmdir()


def _line(record: Mapping[str, Any], indent: int | None = None) -> str:
    """The record as JSON. Half a character (a lone surrogate) becomes the escape that JSON has for it."""
    text = to_json(record, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"
