"""What `doctor` prints: about this machine, or about a run."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console

from reinforce_lite.runlog.diagnosis import Diagnosis
from reinforce_lite.trainer.machine_check import MachineCheck
from reinforce_lite.utils.text import harmless


def show_diagnosis(name: str, diagnosis: Diagnosis) -> None:
    """A run's figures, what is wrong, and what to do."""
    console = Console(highlight=False, markup=False)
    for line in diagnosis.figures:
        console.print(harmless(line), soft_wrap=True)
    if diagnosis.problems:
        console.print("\nwrong:")
        for line in diagnosis.problems:
            console.print(harmless(f"- {line}"), soft_wrap=True)
    else:
        console.print(harmless(f"\nNothing looks wrong with {name}."), soft_wrap=True)
    console.print(harmless(diagnosis.next), soft_wrap=True)


def show_machine(check: MachineCheck) -> None:
    """What the machine is, how it did, and what to expect."""
    console = Console(highlight=False, markup=False)
    for label, text in _machine_rows(check):
        console.print(harmless(f"{label:11}{text}"), soft_wrap=True)  # a command must stay one line


def machine_as_json(check: MachineCheck) -> dict[str, Any]:
    """Everything that `show_machine` prints."""
    return asdict(check) | {"self_check": asdict(check.self_check) | {"passed": check.self_check.passed}}


def _machine_rows(check: MachineCheck) -> Iterator[tuple[str, str]]:
    machine, found = check.machine, check.self_check
    memory = f"{machine['memory_bytes'] / 1e9:.0f} GB of memory"
    yield "machine", f"{machine['processor']}, {machine['cores']} cores, {memory}, {machine['system']}"
    device = machine.get("gpu") or f"{machine['device']}, {check.threads} threads"
    yield "device", f"{device}, {machine['dtype']}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    if installed := [name for name, there in check.extras.items() if there]:
        yield "extras", f"installed: {', '.join(installed)}"
    if missing := [name for name, there in check.extras.items() if not there]:
        extras = ",".join(missing)
        yield "", f'not installed: {", ".join(missing)} (pip install "reinforce-lite[{extras}]")'
    yield (
        "self-check",
        f"log-probabilities are within {found.max_gap:.1g} nats of plain transformers' "
        f"(up to {found.bound:g} is rounding)",
    )
    speeds = (check.rollout_tokens_per_second, check.update_tokens_per_second)
    yield "speed", f"sampling {speeds[0]:,.0f} tokens/s, update {speeds[1]:,.0f} tokens/s"
    usable = "" if check.usable_memory is None else f" of {check.usable_memory / 1e9:.1f} that are usable"
    yield "memory", f"the quickstart needs {check.planned_memory / 1e9:.1f} GB{usable}"
    minutes = max(1, round(check.run_seconds / 60))
    yield "to expect", f"the quickstart takes about {minutes} min here, {check.step_seconds:.1f} s a step"
