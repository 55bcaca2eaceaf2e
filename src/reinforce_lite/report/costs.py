"""What a run took: time by phase, memory planned and measured, versions, machine, config."""

from typing import Any

from reinforce_lite.report.curves import MEAN_LENGTH, PEAK_MEMORY
from reinforce_lite.report.result import count
from reinforce_lite.report.run_data import RunData

PHASES = {"rollout": "time/rollout", "reward": "time/reward", "update": "time/update"}
"""Phases of a step and their keys in steps.jsonl."""


def build_costs(data: RunData) -> dict[str, Any]:
    """Seconds by phase, bytes, facts in words, and config.toml as text."""
    config = (data.run.path / "config.toml").read_text(encoding="utf-8")
    return {"time": _time(data), "memory": _memory(data), "facts": _facts(data), "config": config}


def _time(data: RunData) -> dict[str, float | None]:
    """Seconds by phase; `other` (loading, saving) is None until the run ends."""
    phases = {name: sum(line.get(key, 0.0) for line in data.steps) for name, key in PHASES.items()}
    phases["evaluation"] = sum(e.get("seconds", 0.0) for e in data.evals)
    known = sum(phases.values())
    total = data.summary.get("seconds")
    return phases | {
        "other": None if total is None else max(0.0, total - known),
        "total": max(total or 0.0, known),
    }


def _memory(data: RunData) -> dict[str, int | None]:
    """Bytes, None where unknown; `dry_run` is what the trial of the largest possible step needed."""
    memory = data.summary.get("memory") or {}
    peaks = [line.get(PEAK_MEMORY) or 0 for line in data.steps]
    peak = memory.get("peak_bytes") or data.summary.get("peak_memory_bytes") or max(peaks, default=0)
    return {
        "planned": memory.get("planned_bytes") or data.machine.get("planned_bytes"),
        "dry_run": memory.get("dry_run_bytes"),
        "measured": peak or None,
    }


def _facts(data: RunData) -> dict[str, str]:
    """Facts about the run, in words, in the order of the page; unknown ones are omitted."""
    rollout, environment = data.config.get("rollout", {}), data.machine | data.summary
    questions, group_size = rollout.get("prompts_per_step", 0), rollout.get("group_size", 0)
    completions = questions * group_size * len(data.steps)
    tokens = sum(line[MEAN_LENGTH] * questions * group_size for line in data.steps)
    per_step = f"{count(questions, 'question')} with {count(group_size, 'completion')} each"
    device = [str(environment[key]) for key in ("device", "dtype") if environment.get(key)]
    facts = {
        "model": str(data.config.get("model", {}).get("name", "")),
        "task": data.task,
        "recipe": str(data.config.get("recipe", "")),
        "objective": str(data.config.get("objective", {}).get("preset", "")),
        "steps": f"{len(data.steps):,}, each of {per_step}",
        "completions": f"{completions:,} with {count(round(tokens), 'token')} in total",
        "seed": str(data.config.get("train", {}).get("seed", "")),
        "machine": ", ".join(_machine(data) + device),
        "versions": ", ".join(f"{name} {v}" for name, v in (environment.get("versions") or {}).items()),
        "command": data.run.first_command(""),
    }
    return {name: text for name, text in facts.items() if text}


def _machine(data: RunData) -> list[str]:
    """The system (from the summary, or else machine.json), processor, cores, memory, GPU and its memory."""
    machine = data.machine
    parts = [
        data.summary.get("machine") or machine.get("system"),
        machine.get("processor"),
        count(machine["cores"], "core") if machine.get("cores") else "",
        _gigabytes(machine.get("memory_bytes")),
        machine.get("gpu"),
        _gigabytes(machine.get("gpu_memory_bytes")),
    ]
    return [str(part) for part in parts if part]


def _gigabytes(size: int | None) -> str:
    return f"{size / 1e9:.0f} GB" if size else ""
