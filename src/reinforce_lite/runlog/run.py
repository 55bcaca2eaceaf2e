"""The run directory: names, lock, JSON lines in and out. It alone is what reports are made from.

    runs/NAME/  config.toml  command.txt  machine.json  steps.jsonl  rollouts.jsonl  evals.jsonl
                eval_rollouts.jsonl  checkpoints/step-N/  model/  best/  summary.json

Lines are appended one by one as they happen, so a killed run has lost nothing that it wrote. A
resume goes back to its checkpoint's step with `rewind`.
"""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reinforce_lite.config import Config, dump_config, load_config
from reinforce_lite.errors import UsageError
from reinforce_lite.utils.atomic import write_atomically

logger = logging.getLogger(__name__)

RUNS = Path("runs")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Line = dict[str, Any]


class Run:
    """A run directory, for reading; `lock()` it before writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock")

    @property
    def started(self) -> bool:
        """Whether there is a run here to go on with."""
        return _is_run(self.path)

    @property
    def resume_hint(self) -> str:
        """What a person whose run has ended early is to do; only a config.toml can be gone on from."""
        if self.started:
            return f"go on with: reinforce-lite train --run {self.name} --resume"
        return "give the same command again"

    def remove_if_empty(self) -> None:
        """Remove a directory that holds no run, so that its name is free."""
        if not self.started:
            (self.path / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else lies there
                self.path.rmdir()

    @property
    def name(self) -> str:
        """What `find` finds it by."""
        return self.path.name if self.path.parent == RUNS else str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def steps(self) -> list[Line]:
        """One line a step, with the names of `steps.jsonl`."""
        return list(self.read("steps"))

    @property
    def evals(self) -> list[Line]:
        """One line an evaluation."""
        return list(self.read("evals"))

    @property
    def summary(self) -> Line:
        """What came of the run; empty while it has not ended. Raises UsageError for a damaged file."""
        file = self.path / "summary.json"
        try:
            return dict(json.loads(file.read_bytes())) if file.exists() else {}
        except (ValueError, TypeError) as error:
            raise UsageError(f"{file} is damaged: {error}", "remove it: a resume writes it again") from error

    @property
    def config(self) -> Config:
        """The resolved config that it ran with."""
        return load_config(str(self.path / "config.toml"))

    def read(self, name: str) -> Iterator[Line]:
        """The lines of NAME.jsonl; one that a kill cut short, perhaps inside a character, ends it."""
        file = self.path / f"{name}.jsonl"
        if not file.exists():
            return
        with file.open("rb") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    return

    def append(self, name: str, *lines: Line) -> None:
        """Add lines to NAME.jsonl and hand them to the system at once."""
        with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def sync(self) -> None:
        """See that every line is on the disk, before a checkpoint says that its step is done."""
        for file in self.path.glob("*.jsonl"):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

    def write_config(self, resolved: Config) -> None:
        """Write config.toml."""
        write_atomically(self.path / "config.toml", dump_config(resolved))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def write_machine(self, machine: Mapping[str, Any]) -> None:
        """Write machine.json: where the run goes on, and with what."""
        write_atomically(self.path / "machine.json", json.dumps(machine, indent=2, ensure_ascii=False) + "\n")

    def command(self, now: str) -> str:
        """The command that began the run, kept in command.txt; `now` is the present one."""
        file = self.path / "command.txt"
        if now and not file.exists():
            write_atomically(file, now + "\n")
        return file.read_text(encoding="utf-8").strip() if file.exists() else ""

    def evaluated(self, step: int, split: str) -> bool:
        """Whether this evaluation is there, whole."""
        return any(e["step"] == step and e["split"] == split for e in self.read("evals"))

    def rewind(self, step: int) -> None:
        """Forget what came after `step`, the completions of evaluations that were not finished, and files
        that a kill left half written."""
        for leftover in self.path.glob(".*.new"):
            if not _lives(leftover.name.split(".")[-2]):
                leftover.unlink(missing_ok=True)
        for name in ("steps", "rollouts", "evals"):
            self._keep(name, lambda line: line["step"] <= step)
        whole = {(e["step"], e["split"]) for e in self.read("evals")}
        self._keep("eval_rollouts", lambda line: (line["step"], line["split"]) in whole)

    def _keep(self, name: str, wanted: Callable[[Line], bool]) -> None:
        if (self.path / f"{name}.jsonl").exists():
            kept = (line for line in self.read(name) if wanted(line))
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
            write_atomically(self.path / f"{name}.jsonl", text)

    def lock(self) -> None:
        """Take the directory for this process. Raises UsageError when another one has it.

        The system frees the lock of a process that died, so none is ever left behind.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another process is training in {self.path}", "wait for it, or choose another --run name"
            ) from None

    def unlock(self) -> None:
        self._lock.release()


def create_run(name: str) -> Run:
    """A new run directory under runs/. Raises UsageError for a bad name or one that is taken."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:60]!r} can't be the name of a run",
            "use up to 100 letters, digits, dots, dashes and underscores, a letter or digit first",
        )
    path = RUNS / name
    if (path / "config.toml").exists():
        raise UsageError(
            f"the run {name} is there already",
            f"go on with it: --run {name} --resume; or choose another name",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UsageError(f"can't write to {path.absolute()}: {error.strerror}") from None
    return Run(path)


def open_run(name: str, resume: bool = False) -> Run:
    """A new run, or with `resume` the one of this name if it was begun."""
    if resume and run_exists(name):
        return find_run(name)
    run = create_run(name)
    if resume:
        logger.warning("there is no run %s to go on with: a new one begins", name)
    return run


def new_run_name(recipe: str) -> str:
    """A run's name when none is given: the recipe's and the time."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", recipe).strip("._-") or "run"
    name = f"{plain[:60]}-{time.strftime('%Y%m%d-%H%M%S')}"
    twins = sum(1 for _ in RUNS.glob(f"{name}*"))
    return f"{name}-{twins + 1}" if twins else name


def find_run(name: str) -> Run:
    """An existing run, by its name under runs/ or by path. Raises UsageError when there is none."""
    for path in (RUNS / name, Path(name)):
        if _is_run(path):
            return Run(path)
    there = ", ".join(sorted(p.parent.name for p in RUNS.glob("*/config.toml"))[-5:])
    raise UsageError(f"there is no run {name!r}", f"the last ones under runs/: {there}" if there else "")


def run_exists(name: str) -> bool:
    """Whether there is a run of this name under runs/, or at this path."""
    return _is_run(RUNS / name) or _is_run(Path(name))


def _is_run(path: Path) -> bool:
    try:
        return (path / "config.toml").is_file()
    except OSError:  # a name too long to be one
        return False


def trained_config(name: str, otherwise: Config) -> Config:
    """The config to answer with as `name`: a run's with its trained model, or `otherwise` with that model.

    A folder inside a run, such as its best/, brings that run's config too.
    Raises UsageError for a run that has no trained model yet.
    """
    base, model = otherwise, name
    if not run_exists(name) and _is_run(Path(name).parent):
        base = Run(Path(name).parent).config
    elif run_exists(name):
        run = find_run(name)
        base, model = run.config, str(run.path / "model")
        if not Path(model).is_dir():
            raise UsageError(
                f"the run {name} has no trained model yet", f"finish it: train --run {name} --resume"
            )
    return base.model_copy(update={"model": base.model.model_copy(update={"name": model})})


def _lives(process: str) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:  # it is another user's
        return True
    return True
