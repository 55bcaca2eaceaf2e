"""What a run took: time by phase, memory planned and measured, versions, machine, config."""

from typing import Any

from reinforce_lite.report.result import counted
from reinforce_lite.report.run_data import Files

PHASES = ("rollout", "reward", "update")


def build_costs(files: Files) -> dict[str, Any]:
    """Seconds by phase, bytes, facts in words, and config.toml as text."""
    return {"time": _time(files), "memory": _memory(files), "facts": _facts(files), "config": _config(files)}


def _time(files: Files) -> dict[str, float | None]:
    """Seconds in each phase; `other` (loading, saving) is known once the run has ended."""
    spent: dict[str, float | None] = {
        name: sum(line.get(f"time/{name}", 0.0) for line in files.steps) for name in PHASES
    }
    spent["evaluation"] = sum(e.get("seconds", 0.0) for e in files.evals)
    known = sum(s for s in spent.values() if s is not None)
    total = files.summary.get("seconds")
    return spent | {
        "other": None if total is None else max(0.0, total - known),
        "total": max(total or 0.0, known),
    }


def _memory(files: Files) -> dict[str, int | None]:
    """Bytes, None where not known; `probed` is what a trial of the largest step needed."""
    told = files.summary.get("memory") or {}
    peaks = [line.get("memory/peak_bytes") or 0 for line in files.steps]
    peak = told.get("peak_bytes") or files.summary.get("peak_memory_bytes") or max(peaks, default=0)
    return {
        "planned": told.get("planned_bytes") or files.machine.get("planned_bytes"),
        "probed": told.get("dry_run_bytes"),
        "measured": peak or None,
    }


def _facts(files: Files) -> dict[str, str]:
    """What to know of the run, in words, in the order of the page."""
    rollout, known = files.config.get("rollout", {}), files.machine | files.summary
    questions, each = rollout.get("prompts_per_step", 0), rollout.get("group_size", 0)
    answers = questions * each * len(files.steps)
    tokens = sum(line["completions/mean_length"] * questions * each for line in files.steps)
    of_each = f"{counted(questions, 'question')} with {counted(each, 'answer')} each"
    facts = {
        "model": str(files.config.get("model", {}).get("name", "")),
        "task": files.task,
        "recipe": str(files.config.get("recipe", "")),
        "objective": str(files.config.get("objective", {}).get("preset", "")),
        "steps": f"{len(files.steps):,} of {of_each}",
        "answers": f"{answers:,} with {counted(round(tokens), 'token')}",
        "seed": str(files.config.get("train", {}).get("seed", "")),
        "machine": ", ".join(_machine(files) + [str(known[k]) for k in ("device", "dtype") if known.get(k)]),
        "versions": ", ".join(f"{name} {v}" for name, v in (known.get("versions") or {}).items()),
        "command": files.run.first_command(""),
    }
    return {name: text for name, text in facts.items() if text}


def _machine(files: Files) -> list[str]:
    """The system as the summary names it, or else machine.json; processor, cores, memory, card."""
    found = files.machine
    names = [files.summary.get("machine") or found.get("system"), found.get("processor")]
    names += [counted(found["cores"], "core")] if found.get("cores") else []
    names += [
        _gigabytes(found.get("memory_bytes")),
        found.get("gpu"),
        _gigabytes(found.get("gpu_memory_bytes")),
    ]
    return [str(name) for name in names if name]


def _gigabytes(size: int | None) -> str:
    return f"{size / 1e9:.0f} GB" if size else ""


def _config(files: Files) -> str:
    return (files.run.path / "config.toml").read_text(encoding="utf-8")
