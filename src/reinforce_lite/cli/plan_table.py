"""A plan as a person reads it, and as JSON: by part, and beside what other methods keep."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from reinforce_lite.config import config_value
from reinforce_lite.planner.estimate import OTHERS, SCHEMES, ParameterScheme, in_gb, kv_bytes
from reinforce_lite.planner.plan import PLAN_KEYS, Plan, choice_costs, chosen_flags
from reinforce_lite.utils.text import harmless


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Everything that `show` prints; sizes in bytes."""
    n, place = plan.shape.parameters, plan.place
    return {
        "recipe": plan.config.recipe,
        "model": plan.config.model.name,
        "parameters": n,
        "kv_bytes_per_token": kv_bytes(plan.shape, place.dtype),
        "device": place.kind,
        "dtype": place.dtype_name,
        "memory_bytes": place.memory,
        "fits": plan.fits,
        "chosen": {
            key: {"value": config_value(plan.config, key), "costs": choice_costs(plan).get(key, "")}
            for key in PLAN_KEYS
        },
        "flags": chosen_flags(plan),
        "total_bytes": plan.total,
        "peak": plan.peak,
        "parts": {
            p.name: {"bytes": p.bytes, "counted": plan.peak in p.moments, "why": p.why} for p in plan.parts
        },
        "kept": {name: _by_part(scheme, n) for name, scheme in _columns(plan).items()},
        "schemes": {
            f"{dtype}, {state}": {"bytes_per_parameter": s.total, "bytes": round(s.total * n)}
            for (dtype, state), s in SCHEMES.items()
        },
    }


def _columns(plan: Plan) -> dict[str, ParameterScheme]:
    return {"this recipe": plan.scheme, **OTHERS}


def _by_part(scheme: ParameterScheme, n: int) -> dict[str, Any]:
    sizes = {
        "weights": scheme.weights * n,
        "gradients": scheme.gradients * n,
        "optimizer state": scheme.state * n,
        "master copy": scheme.master_weights * n,
        "together": scheme.total * n,
    }
    return {**{name: round(size) for name, size in sizes.items()}, "why": scheme.why}


def show_plan(plan: Plan, to_error: bool = False) -> None:
    """Print the tables, on standard output or on standard error."""
    console = Console(stderr=to_error, highlight=False, markup=False)
    shape, place = plan.shape, plan.place
    console.print(
        f"{harmless(plan.config.model.name)} in {place.dtype_name} on {place.kind}: {shape.parameters:,} "
        f"parameters, {kv_bytes(shape, place.dtype):,} bytes of keys and values a token",
        soft_wrap=True,
    )
    console.print(_table(plan))
    for line in _lines(plan):
        console.print(line, soft_wrap=True)


def _table(plan: Plan) -> Table:
    columns = {name: _by_part(scheme, plan.shape.parameters) for name, scheme in _columns(plan).items()}
    table = Table("GB", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    others = list(OTHERS)
    kept = {p.name: p.bytes for p in plan.parts if p.name in columns["article"]}
    for name, size in kept.items():
        table.add_row(name, in_gb(size), *(in_gb(columns[o][name]) for o in others))
    table.add_row(
        "kept throughout", in_gb(sum(kept.values())), *(in_gb(columns[o]["together"]) for o in others)
    )
    table.add_section()
    for part in plan.parts:
        if part.name not in kept:
            table.add_row(
                part.name, in_gb(part.bytes) if plan.peak in part.moments else f"({in_gb(part.bytes)})"
            )
    table.add_section()
    table.add_row("total", in_gb(plan.total))
    return table


def _lines(plan: Plan) -> Iterator[str]:
    """What stands below the table: reasons, comparisons, what was chosen."""
    yield f"The peak is in the {plan.peak}; what is in brackets is not held then."
    for part in plan.parts:
        yield f"  {part.name}: {part.why}"
    yield "Other ways keep, beside activations and caches of their own:"
    for name, scheme in OTHERS.items():
        yield f"  {name}, {scheme.total:g} bytes a parameter: {scheme.why}"
    yield "This program can keep, as --model.dtype and --update.optimizer-state say:"
    for (dtype, state), scheme in SCHEMES.items():
        size = in_gb(scheme.total * plan.shape.parameters)
        yield f"  {scheme.total:5.2f} bytes a parameter, {size} GB: {dtype}, {state}"
    for key, cost in choice_costs(plan).items():
        yield f"{key} is {config_value(plan.config, key)}, not the recipe's own: {cost}"
    if plan.place.memory is not None:
        yield f"{'fits' if plan.fits else 'does not fit'} into {in_gb(plan.place.memory)} GB" + _as(plan)


def _as(plan: Plan) -> str:
    chosen = " ".join(chosen_flags(plan))
    return f" with {chosen}" if chosen else ", as it is" if plan.fits else ""
