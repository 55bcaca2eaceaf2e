"""A plan as tables for a person, and as JSON: memory by part, and the training state of other methods."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from reinforce_lite.config import config_value
from reinforce_lite.planner.estimate import in_gb, kv_bytes
from reinforce_lite.planner.plan import (
    PLAN_KEYS,
    Plan,
    choice_costs,
    chosen_flags,
    memory_text,
    plan_after_oom,
)
from reinforce_lite.planner.schemes import OTHER_METHODS, SCHEMES, ParameterScheme
from reinforce_lite.utils.memory import peak_bytes, usable_bytes
from reinforce_lite.utils.text import harmless


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Everything that `show_plan` prints; sizes in bytes."""
    n, target, peak = plan.shape.parameters, plan.target, plan.peak_phase
    costs = choice_costs(plan)
    return {
        "recipe": plan.config.recipe,
        "model": plan.config.model.name,
        "parameters": n,
        "kv_bytes_per_token": kv_bytes(plan.shape, target.dtype),
        "device": target.device_type,
        "dtype": target.dtype_name,
        "memory_bytes": target.memory,
        "gpu_bytes": target.installed,
        "host_bytes": plan.host_bytes,
        "host_memory_bytes": target.host_memory,
        "fits": plan.fits,
        "chosen": {
            key: {"value": config_value(plan.config, key), "cost": costs.get(key, "")} for key in PLAN_KEYS
        },
        "flags": chosen_flags(plan),
        "total_bytes": plan.total,
        "peak_phase": peak,
        "parts": {
            part.name: {"bytes": part.bytes, "at_peak": peak in part.phases, "description": part.description}
            for part in plan.parts
        },
        "training_state": {
            name: {**_training_state(scheme, n), "description": scheme.description}
            for name, scheme in {"this recipe": plan.scheme, **OTHER_METHODS}.items()
        },
        "schemes": {
            f"{dtype}, {state}": {"bytes_per_parameter": scheme.total, "bytes": round(scheme.total * n)}
            for (dtype, state), scheme in SCHEMES.items()
        },
    }


def _training_state(scheme: ParameterScheme, parameters: int) -> dict[str, int]:
    """Bytes by the names of the plan's parts, which are those of the scheme's fields, and their total."""
    sizes = asdict(scheme) | {"total": scheme.total}
    del sizes["description"]
    return {name.replace("_", " "): round(size * parameters) for name, size in sizes.items()}


def show_plan(plan: Plan, to_error: bool = False, verdict: str = "") -> None:
    """Print the tables on standard output, or on standard error; `verdict` replaces whether the plan fits."""
    console = Console(stderr=to_error, highlight=False, markup=False)
    n, target = plan.shape.parameters, plan.target
    console.print(
        f"{harmless(plan.config.model.name)} in {target.dtype_name} on {target.device_type}: "
        f"{n:,} parameters, {kv_bytes(plan.shape, target.dtype):,} KV bytes/token"
    )
    console.print(_memory_table(plan))
    console.print(f"Peak phase: {plan.peak_phase}. Parts in brackets are not held then.\n")
    console.print(_grid((part.name, part.description) for part in plan.parts))
    if plan.host_bytes:
        there = "" if target.host_memory is None else f", of {in_gb(target.host_memory)} GB"
        moments = "for offloaded moments and " if plan.config.update.offload_optimizer else ""
        size = f"{in_gb(plan.host_bytes)} GB {moments}to save the model"
        console.print(f"\nThe machine's own memory: {size}{there}.")
    console.print("\nTraining state of other methods; their activations and caches come on top:")
    console.print(
        _grid((name, f"{s.total:g} bytes/parameter", s.description) for name, s in OTHER_METHODS.items())
    )
    console.print("\nTraining state here, by --model.dtype and --update.optimizer-state:")
    console.print(
        _grid(
            (f"{dtype}, {state}", f"{s.total:.2f} bytes/parameter", f"{in_gb(s.total * n)} GB")
            for (dtype, state), s in SCHEMES.items()
        )
    )
    if costs := choice_costs(plan):
        console.print("\nChanges to the recipe, and what they cost:")
        console.print(_grid((f"{key} = {config_value(plan.config, key)}", costs[key]) for key in costs))
    if not verdict and target.memory is not None:
        verdict = _verdict(plan)
    if verdict:  # one line whatever the width: its options are there to be copied
        console.print(f"\n{verdict}", soft_wrap=True)


def _verdict(plan: Plan) -> str:
    flags = chosen_flags(plan)
    unchanged = ", with the recipe unchanged" if plan.fits else ""
    choices = f" with {' '.join(flags)}" if flags else unchanged
    return f"{'fits' if plan.fits else 'does not fit'} into {memory_text(plan.target)}{choices}"


def show_plan_after_oom(plan: Plan) -> None:
    """Print on standard error what a recipe needs that ran out of memory, and what to try.

    A recipe that the plan already refused is shown as it is: its error names what would fit.
    """
    if plan.target.size is not None and plan.total > plan.target.size:
        show_plan(plan, to_error=True)
        return
    device = torch.device(plan.target.device_type)
    usable = usable_bytes(device)
    smaller = plan_after_oom(plan, usable)
    cause = f"memory ran out: the recipe is planned to need {in_gb(plan.total)} GB"
    if held := peak_bytes(device):  # a run that was refused held nothing of a GPU
        cause += f", this run held up to {in_gb(held)} GB"
    cause += ". " if usable is None else f", and {in_gb(usable)} GB are usable now. "
    if usable is not None and usable < plan.total:
        cause += "Other programs take the rest. "
    else:
        cause += "So another program took memory meanwhile, or the plan counts too little for this model. "
    flags = " ".join(chosen_flags(smaller))
    remedy = f"Try {flags}" if flags else "Nothing in the recipe can be made smaller: try a smaller model"
    show_plan(smaller, to_error=True, verdict=f"{cause}{remedy} ({in_gb(smaller.total)} GB by this plan)")


def _memory_table(plan: Plan) -> Table:
    methods = {name: _training_state(scheme, plan.shape.parameters) for name, scheme in OTHER_METHODS.items()}
    table = Table("GB")
    for name in ("this recipe", *methods):
        table.add_column(name, justify="right")
    state = {part.name: part.bytes for part in plan.parts if part.name in methods["article"]}
    state["total"] = sum(state.values())
    for name, held in state.items():
        label = "training state" if name == "total" else name
        table.add_row(label, in_gb(held), *(in_gb(sizes[name]) for sizes in methods.values()))
    table.add_section()
    for part in plan.parts:
        if part.name not in state:
            size = in_gb(part.bytes)
            table.add_row(part.name, size if plan.peak_phase in part.phases else f"({size})")
    table.add_section()
    table.add_row("total at the peak", in_gb(plan.total))
    return table


def _grid(rows: Iterable[tuple[str, ...]]) -> Table:
    """Rows in columns without lines; the last column wraps."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for first, *rest in rows:
        grid.add_row(f"  {first}", *rest)
    for column in grid.columns[:-1]:
        column.no_wrap = True
    return grid
