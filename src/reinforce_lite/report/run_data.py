"""What a report reads: a run's small files as a whole, its completions as a stream."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.runlog.records import Record, StepMetrics
from reinforce_lite.runlog.run import Run
from reinforce_lite.utils.kinds import Count, Keys

_Few = Annotated[int, (0, 1_000_000)]


class _Rollout(TypedDict, total=False):
    prompts_per_step: _Few
    group_size: _Few
    refill: _Few


class _Train(TypedDict, total=False):
    steps: Count
    warm_start: Count


class _Config(TypedDict, total=False):
    """What a report reads of config.toml and needs a type for."""

    model: dict[str, object]
    task: dict[str, object]
    objective: dict[str, object]
    rollout: _Rollout
    train: _Train


_CONFIG = Keys.of(_Config)


@dataclass(frozen=True, slots=True)
class RunData:
    """A run directory, without its completions."""

    run: Run
    config: dict[str, Any]
    """config.toml, not validated: a run of another version can be shown too."""
    steps: list[StepMetrics]
    step_records: list[Record]
    """The same as they are in the file, with metrics that this version does not write."""
    evals: list[Record]
    """In the order of their steps."""
    summary: Record
    """Empty until the run ends."""
    machine: Record
    """machine.json, written when the run starts; empty for runs that have none."""
    audit: Record
    """audit.json, written when the run starts; empty for runs that were not audited."""
    steps_retaken: int = 0
    """Steps that were taken again, after a resume from a checkpoint before them or after going back to it."""

    @property
    def step(self) -> int:
        """The last completed step; 0 before the first."""
        return self.steps[-1].step if self.steps else 0

    @property
    def model(self) -> str:
        """The model's name, without its folders."""
        return str(self.config.get("model", {}).get("name", "the model")).rstrip("/").rpartition("/")[2]

    @property
    def task(self) -> str:
        """The task's name, with its level or the path of its problems."""
        task = self.config.get("task", {})
        name = str(task.get("name", "its task"))
        if name == "wordmath":
            return f"wordmath, level {task.get('level', 1)}"
        return f"{name} {task['path']}" if task.get("path") and name != "gsm8k" else name


def load_run_data(run: Run) -> RunData:
    """Read everything except the completions."""
    config = _checked_config(run)
    evals = sorted(run.evals, key=lambda e: e["step"])
    retaken = sum(line["file"] == "steps.jsonl" for line in run.read("rewound"))
    machine, audit = _or_empty(run, "machine"), _or_empty(run, "audit")
    records = run.steps
    steps = [StepMetrics.from_record(record) for record in records]
    return RunData(run, config, steps, records, evals, run.summary, machine, audit, retaken)


def _checked_config(run: Run) -> Record:
    config = run.config_values
    if wrong := _CONFIG.wrong(config):
        raise UsageError(f"{run.path / 'config.toml'} is damaged: [{wrong}] has a wrong value")
    return config


def _or_empty(run: Run, name: Literal["machine", "audit"]) -> Record:
    """What a report can do without; a damaged file is like none."""
    with contextlib.suppress(ReinforceLiteError):
        record: Record = getattr(run, name)
        return record
    return {}


def _group_of(line: Record) -> tuple[int, str]:
    return line["step"], line["problem_id"]


def iter_groups(run: Run) -> Iterator[list[Record]]:
    """The groups of rollouts.jsonl: the lines of the completions sampled for one question in one step.

    The first line of a group may be damaged; then it begins where the step or the problem changes.
    """
    group: list[Record] = []
    for line in run.read("rollouts"):
        if group and (line["sample"] == 0 or _group_of(line) != _group_of(group[-1])):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def iter_eval_completions(data: RunData) -> Iterator[Record]:
    """The lines of eval_rollouts.jsonl that belong to finished evaluations."""
    finished = {(e["split"], e["step"]) for e in data.evals}
    return (line for line in data.run.read("eval_rollouts") if (line["split"], line["step"]) in finished)
