"""A plan as tables for a person, and as JSON: memory by part, and the training state of other methods."""

from typing import Any

from rich.console import Console
from rich.table import Table

from reinforce_lite.config import config_value
from reinforce_lite.planner.estimate import OTHER_METHODS, SCHEMES, ParameterScheme, in_gb, kv_bytes
from reinforce_lite.planner.plan import PLAN_KEYS, Plan, choice_costs, chosen_flags
from reinforce_lite.utils.text import harmless


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Everything that `show_plan` prints; sizes in bytes."""
    n, target = plan.shape.parameters, plan.target
    costs = choice_costs(plan)
    return {
        "recipe": plan.config.recipe,
        "model": plan.config.model.name,
        "parameters": n,
        "kv_bytes_per_token": kv_bytes(plan.shape, target.dtype),
        "device": target.device_type,
        "dtype": target.dtype_name,
        "memory_bytes": target.memory,
        "fits": plan.fits,
        "chosen": {
            key: {"value": config_value(plan.config, key), "cost": costs.get(key, "")} for key in PLAN_KEYS
        },
        "flags": chosen_flags(plan),
        "total_bytes": plan.total,
        "peak_phase": plan.peak_phase,
        "parts": {
            part.name: {
                "bytes": part.bytes,
                "at_peak": plan.peak_phase in part.phases,
                "description": part.description,
            }
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
    """Bytes by the names of the plan's parts, and their total."""
    sizes = {
        "weights": scheme.weights,
        "gradients": scheme.gradients,
        "optimizer state": scheme.optimizer_state,
        "master weights": scheme.master_weights,
        "total": scheme.total,
    }
    return {name: round(size * parameters) for name, size in sizes.items()}


def show_plan(plan: Plan, to_error: bool = False) -> None:
    """Print the tables on standard output, or on standard error."""
    console = Console(stderr=to_error, highlight=False, markup=False)
    shape, target = plan.shape, plan.target
    console.print(
        f"{harmless(plan.config.model.name)} in {target.dtype_name} on {target.device_type}: "
        f"{shape.parameters:,} parameters, {kv_bytes(shape, target.dtype):,} KV bytes/token"
    )
    console.print(_memory_table(plan))
    console.print(f"Peak phase: {plan.peak_phase}. Parts in brackets are not held then.\n")
    console.print(_grid([(part.name, part.description) for part in plan.parts]))
    console.print("\nTraining state of other methods; their activations and caches come on top:")
    console.print(
        _grid([(name, f"{s.total:g} bytes/parameter", s.description) for name, s in OTHER_METHODS.items()])
    )
    console.print("\nTraining state here, by --model.dtype and --update.optimizer-state:")
    console.print(
        _grid(
            [
                (
                    f"{dtype}, {state}",
                    f"{s.total:.2f} bytes/parameter",
                    f"{in_gb(s.total * shape.parameters)} GB",
                )
                for (dtype, state), s in SCHEMES.items()
            ]
        )
    )
    if costs := choice_costs(plan):
        console.print("\nChanges to the recipe, and what they cost:")
        console.print(_grid([(f"{key} = {config_value(plan.config, key)}", costs[key]) for key in costs]))
    if target.memory is not None:
        # One line whatever the width: its options are there to be copied.
        console.print(f"\n{_verdict(plan)}", soft_wrap=True)


def _memory_table(plan: Plan) -> Table:
    methods = {name: _training_state(scheme, plan.shape.parameters) for name, scheme in OTHER_METHODS.items()}
    table = Table("GB", "this recipe", *methods)
    for column in table.columns[1:]:
        column.justify = "right"
    state = [part for part in plan.parts if part.name in methods["article"]]
    for part in state:
        table.add_row(part.name, in_gb(part.bytes), *(in_gb(sizes[part.name]) for sizes in methods.values()))
    table.add_row(
        "training state",
        in_gb(sum(part.bytes for part in state)),
        *(in_gb(sizes["total"]) for sizes in methods.values()),
    )
    table.add_section()
    for part in plan.parts:
        if part not in state:
            size = in_gb(part.bytes)
            table.add_row(part.name, size if plan.peak_phase in part.phases else f"({size})")
    table.add_section()
    table.add_row("total at the peak", in_gb(plan.total))
    return table


def _grid(rows: list[tuple[str, ...]]) -> Table:
    """Rows in columns without lines; the last column wraps."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in rows[0][:-1]:
        grid.add_column(no_wrap=True)
    grid.add_column()
    for first, *rest in rows:
        grid.add_row(f"  {first}", *rest)
    return grid


def _verdict(plan: Plan) -> str:
    assert plan.target.memory is not None
    verdict = f"{'fits' if plan.fits else 'does not fit'} into {in_gb(plan.target.memory)} GB"
    if flags := chosen_flags(plan):
        return f"{verdict} with {' '.join(flags)}"
    return f"{verdict}, with the recipe unchanged" if plan.fits else verdict
