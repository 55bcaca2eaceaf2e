"""What a report is made from: a run's small files whole, its answers as a stream of groups."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reinforce_lite.runlog.run import Line, Run


@dataclass(frozen=True, slots=True)
class Files:
    """A run directory, without its answers."""

    run: Run
    config: dict[str, Any]
    """config.toml as it stands: a run of another version is shown too."""
    steps: list[Line]
    evals: list[Line]
    """In the order of their steps."""
    summary: Line
    """Empty while the run goes on."""
    machine: Line
    """machine.json, written when the run begins; empty in runs that have none."""

    @property
    def step(self) -> int:
        """The last step that is done; 0: none."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def planned_steps(self) -> int:
        """How many steps were asked for."""
        return int(self.config.get("train", {}).get("steps", self.step))

    @property
    def model(self) -> str:
        """The model's name, without the folders before it."""
        return str(self.config.get("model", {}).get("name", "the model")).rstrip("/").rpartition("/")[2]

    @property
    def task(self) -> str:
        """The task's name, with its level or where its problems come from."""
        task = self.config.get("task", {})
        name = str(task.get("name", "its task"))
        if name == "wordmath":
            return f"wordmath, level {task.get('level', 1)}"
        return f"{name} {task['path']}" if task.get("path") and name != "gsm8k" else name


def load(run: Run) -> Files:
    """Read everything but the answers."""
    config = tomllib.loads((run.path / "config.toml").read_text(encoding="utf-8"))
    evals = sorted(run.evals, key=lambda e: e["step"])
    return Files(run, config, run.steps, evals, run.summary, _machine(run))


def groups(run: Run) -> Iterator[list[Line]]:
    """The lines of rollouts.jsonl, a list a group: the answers to one question in one step."""
    group: list[Line] = []
    for line in run.read("rollouts"):
        if group and (_key(line) != _key(group[-1]) or line["sample"] <= group[-1]["sample"]):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def whole(files: Files) -> Iterator[Line]:
    """The lines of eval_rollouts.jsonl whose evaluation was finished."""
    done = {(e["split"], e["step"]) for e in files.evals}
    return (line for line in files.run.read("eval_rollouts") if (line["split"], line["step"]) in done)


def _machine(run: Run) -> Line:
    try:
        return dict(json.loads((run.path / "machine.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there, not whole, or not an object
        return {}


def _key(line: Line) -> tuple[int, str]:
    return line["step"], line["problem_id"]
