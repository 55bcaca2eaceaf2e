"""What a run took: time by phase, memory planned and measured, versions, machine, config."""

from typing import Any

from reinforce_lite.report.result import count
from reinforce_lite.report.run_data import RunData
from reinforce_lite.runlog.records import Record


def build_costs(data: RunData) -> dict[str, Any]:
    """Seconds by phase, bytes, facts in words, and config.toml as text."""
    config = (data.run.path / "config.toml").read_text(encoding="utf-8")
    return {"time": _time(data), "memory": _memory(data), "facts": _facts(data), "config": config}


def _time(data: RunData) -> dict[str, float | None]:
    """Seconds by phase; `other` (loading, saving) is None until the run ends."""
    phases = {
        "rollout": sum(step.rollout_seconds or 0.0 for step in data.steps),
        "reward": sum(step.reward_seconds or 0.0 for step in data.steps),
        "update": sum(step.update_seconds or 0.0 for step in data.steps),
        "evaluation": sum(e.get("seconds", 0.0) for e in data.evals),
    }
    known = sum(phases.values())
    total = data.summary.get("seconds")
    other = None if total is None else max(0.0, total - known)
    return phases | {"other": other, "total": max(total or 0.0, known)}


def _memory(data: RunData) -> dict[str, int | None]:
    """Bytes, None where unknown; `dry_run` is what the trial of the largest possible step needed."""
    memory = data.summary.get("memory") or {}
    peaks = [step.peak_memory or 0 for step in data.steps]
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
    sampled = [step.completions(questions, group_size) for step in data.steps]
    tokens = sum(step.mean_length * n for step, n in zip(data.steps, sampled, strict=True))
    retaken = data.steps_retaken
    most = questions * rollout.get("refill", 1)
    up_to = f" (up to {most} with refill)" if most > questions else ""
    per_step = f"{count(questions, 'question')}{up_to} with {count(group_size, 'completion')} each"
    facts = {
        "model": str(data.config.get("model", {}).get("name", "")),
        "task": data.task,
        "recipe": str(data.config.get("recipe", "")),
        "objective": str(data.config.get("objective", {}).get("preset", "")),
        "steps": f"{len(data.steps):,}, each of {per_step}",
        "selection": str(rollout.get("selection", "")),
        "taken again": f"{count(retaken, 'step')}, see rewound.jsonl" if retaken else "",
        "completions": f"{sum(sampled):,} with {count(round(tokens), 'token')} in total",
        "seed": str(data.config.get("train", {}).get("seed", "")),
        "machine": _machine(environment),
        "self-check": _self_check(environment.get("self_check") or {}),
        "versions": ", ".join(f"{name} {v}" for name, v in (environment.get("versions") or {}).items()),
        "command": data.run.command,
    }
    return {name: text for name, text in facts.items() if text}


def _self_check(check: Record) -> str:
    if not check:
        return ""
    gap, bound = check["max_gap"], check["bound"]
    return f"log-probabilities differ from plain transformers' by at most {gap:.1g} nats (allowed: {bound:g})"


def _machine(environment: Record) -> str:
    """The system, the processor, cores, memory, a GPU and its memory, device and dtype, as far as known."""
    parts = [
        environment.get("machine") or environment.get("system"),
        environment.get("processor"),
        count(environment["cores"], "core") if environment.get("cores") else "",
        _gigabytes(environment.get("memory_bytes")),
        environment.get("gpu"),
        _gigabytes(environment.get("gpu_memory_bytes")),
        environment.get("device"),
        environment.get("dtype"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _gigabytes(size: int | None) -> str:
    return f"{size / 1e9:.0f} GB" if size else ""
