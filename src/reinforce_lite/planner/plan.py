"""Does a run fit into memory, and if not, which settings make it fit? Answered before a weight is loaded.

    config ──read_shape──▶ ModelShape ──memory_parts──▶ MemoryPart, ... ──▶ Plan ──cli/plan_table──▶ tables

A plan needs the recipe and the model's config alone: the task is not loaded, so no user code runs. Planning
changes nothing: a person passes the suggested settings to `train`, which refuses a recipe that does not fit
with the same message.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from reinforce_lite.config import Config, ModelConfig, config_value, option_flag, override_config
from reinforce_lite.errors import DoesNotFitError, UsageError
from reinforce_lite.models.device import pick_device, pick_dtype
from reinforce_lite.planner.estimate import (
    GB,
    PHASES,
    ROLLOUT,
    MemoryPart,
    ParameterScheme,
    Target,
    in_gb,
    max_step_tokens,
    max_training_sequence,
    memory_parts,
    parameter_scheme,
)
from reinforce_lite.planner.model_shape import ModelShape, read_shape
from reinforce_lite.utils import memory

MEMORY_KEYS = ("update.activation_checkpointing", "update.micro_batch_tokens", "rollout.max_num_seqs")
"""Keys that set how much is held at a time; they change results by rounding alone."""
PLAN_KEYS = ("update.optimizer_state", *MEMORY_KEYS)
"""The keys that a plan may choose."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The memory of one recipe on one target."""

    config: Config
    """The recipe with the choices of the plan."""
    requested: Config
    """The recipe as given."""
    shape: ModelShape
    target: Target
    parts: tuple[MemoryPart, ...]

    def bytes_in(self, phase: str) -> int:
        """Bytes held in one of PHASES."""
        return sum(part.bytes for part in self.parts if phase in part.phases)

    @property
    def peak_phase(self) -> str:
        """The phase in which most is held."""
        return max(PHASES, key=self.bytes_in)

    @property
    def total(self) -> int:
        """Bytes held in the peak phase."""
        return self.bytes_in(self.peak_phase)

    @property
    def fits(self) -> bool:
        """Whether the total is within the memory of the target."""
        return self.target.memory is None or self.total <= self.target.memory

    @property
    def scheme(self) -> ParameterScheme:
        """What is kept of each parameter."""
        return parameter_scheme(self.config, self.target)


def make_plan(config: Config, vram: float | None = None) -> Plan:
    """Plan a recipe: unchanged if it fits, else with the cheapest choices that fit, else the smallest plan.

    `vram` is the memory of a GPU in GB; by default the plan is for this machine's device. Raises
    UsageError if the model or the device is not available.
    """
    return best_plan(plan_unchanged(config, vram))


def plan_unchanged(config: Config, vram: float | None = None) -> Plan:
    """Plan a recipe without choosing anything. Arguments and errors as for `make_plan`."""
    target = _target(config.model, vram)
    parameter_scheme(config, target)
    shape = read_shape(config.model.name, config.model.trust_remote_code, config.max_sequence_tokens)
    return Plan(config, config, shape, target, memory_parts(config, shape, target))


def check_fits(plan: Plan) -> None:
    """Raise DoesNotFitError if the plan does not fit; its remedy names settings or hardware that would."""
    if plan.fits:
        return
    assert plan.target.memory is not None
    best = best_plan(plan)
    if best.fits:
        needed, remedy = f"{in_gb(plan.total)} GB", f"it fits with {' '.join(chosen_flags(best))}"
    else:
        needed, remedy = (
            f"at least {in_gb(best.total)} GB",
            f"what would fit: {'; '.join(_alternatives(best))}",
        )
    raise DoesNotFitError(
        f"{plan.config.model.name} needs {needed} of memory, but there are {in_gb(plan.target.memory)} GB",
        remedy,
    )


def chosen_flags(plan: Plan) -> list[str]:
    """The plan's choices as options of `train`; empty if the recipe is unchanged."""
    values = {key: config_value(plan.config, key) for key in _chosen_keys(plan)}
    return [option_flag(key) + ("" if value is True else f" {value}") for key, value in values.items()]


def _chosen_keys(plan: Plan) -> list[str]:
    return [key for key in PLAN_KEYS if config_value(plan.config, key) != config_value(plan.requested, key)]


def _target(model: ModelConfig, vram: float | None) -> Target:
    if vram is None:
        device = pick_device(model.device)
        return Target(device.type, pick_dtype(model.dtype, device), _device_memory(device))
    if not 0 < vram < math.inf:
        raise UsageError(f"a GPU can't have {vram:g} GB of memory", "for example --vram 24")
    device_type = "cuda" if model.device == "auto" else model.device
    # A GPU that is not in this machine can't be queried; those that are large enough have bfloat16 units.
    dtype = "bfloat16" if model.dtype == "auto" and device_type != "cpu" else model.dtype
    return Target(device_type, pick_dtype(dtype, torch.device(device_type)), round(vram * GB))


def _device_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory.installed_bytes() if device.type == "cpu" else None


def best_plan(plan: Plan) -> Plan:
    """The first candidate that fits, else the last and smallest."""
    for candidate in _candidates(plan):
        plan = candidate
        if plan.fits:
            break
    return plan


def _candidates(plan: Plan) -> Iterator[Plan]:
    """From the recipe as given to the smallest plan; what costs least is given up first."""
    yield plan
    requested = plan.requested.update
    for state in dict.fromkeys((requested.optimizer_state, "8-bit")):
        for checkpointing in dict.fromkeys((requested.activation_checkpointing, True)):
            for tokens in _micro_batch_sizes(plan.requested):
                values = {
                    "update.optimizer_state": state,
                    "update.activation_checkpointing": checkpointing,
                    "update.micro_batch_tokens": tokens,
                }
                yield _shrink_rollout(_with_values(plan, values))


def _with_values(plan: Plan, values: Mapping[str, object]) -> Plan:
    config = override_config(plan.config, values)
    return replace(plan, config=config, parts=memory_parts(config, plan.shape, plan.target))


def _shrink_rollout(plan: Plan) -> Plan:
    """Halve rollout.max_num_seqs until the rollout fits, if it can."""
    rollout, evaluation = plan.config.rollout, plan.config.eval
    largest_call = max(rollout.prompts_per_step * rollout.group_size, evaluation.n, evaluation.validation_n)
    sequences = min(plan.requested.rollout.max_num_seqs, largest_call)
    limit = plan.target.memory
    while limit is not None and plan.bytes_in(ROLLOUT) > limit and sequences > 1:
        sequences //= 2
        plan = _with_values(plan, {"rollout.max_num_seqs": sequences})
    return plan


def _micro_batch_sizes(config: Config) -> Iterator[int]:
    """update.micro_batch_tokens, halved down to one longest prompt with its completion."""
    tokens, smallest = config.update.micro_batch_tokens, max_training_sequence(config)
    yield tokens
    while tokens > smallest:
        tokens = max(tokens // 2, smallest)
        yield tokens


def _alternatives(plan: Plan) -> list[str]:
    """What would fit: more memory, another dtype, a smaller model."""
    limit = plan.target.memory
    assert limit is not None
    alternatives = [f"{_smallest_memory(plan)} GB of memory"]
    if plan.target.dtype_name == "float32":
        target = replace(plan.target, dtype=torch.bfloat16)
        if best_plan(_with_values(replace(plan, target=target), {})).fits:
            alternatives.append("--model.dtype bfloat16")
    bytes_per_parameter = plan.scheme.total
    other_bytes = plan.total - bytes_per_parameter * plan.shape.parameters
    if limit > other_bytes:
        parameters = int((limit - other_bytes) / bytes_per_parameter)
        alternatives.append(f"a model of about {parameters:,} parameters at most")
    return alternatives


def _smallest_memory(plan: Plan) -> int:
    """The smallest whole number of GB that holds the plan. The cache grows with the GPU: iterate."""
    size = 0
    while math.ceil(plan.total / GB) > size:
        size = math.ceil(plan.total / GB)
        plan = _with_values(replace(plan, target=replace(plan.target, memory=size * GB)), {})
    return size


def choice_costs(plan: Plan) -> dict[str, str]:
    """What each choice costs compared with the recipe, by key; empty if nothing was chosen."""
    costs: dict[str, Callable[[Plan], str]] = {
        "update.optimizer_state": _optimizer_state_cost,
        "update.activation_checkpointing": lambda _: (
            "each layer is computed a second time in the backward pass, with the same gradient; the update "
            "takes about a third longer"
        ),
        "update.micro_batch_tokens": _micro_batch_cost,
        "rollout.max_num_seqs": lambda p: (
            f"{p.config.rollout.max_num_seqs} sequences at a time instead of "
            f"{p.requested.rollout.max_num_seqs}; more decoding steps, each somewhat faster"
        ),
    }
    return {key: costs[key](plan) for key in _chosen_keys(plan)}


def _optimizer_state_cost(plan: Plan) -> str:
    requested = parameter_scheme(plan.requested, plan.target)
    return (
        f"{plan.scheme.total:.4g} bytes per parameter instead of {requested.total:g} "
        f"({plan.scheme.description}); results differ (docs/memory.md), and it needs "
        'pip install "reinforce-lite[8bit]"'
    )


def _micro_batch_cost(plan: Plan) -> str:
    step = max_step_tokens(plan.config, plan.shape)
    tokens, requested = plan.config.update.micro_batch_tokens, plan.requested.update.micro_batch_tokens
    before, after = (math.ceil(step / size) for size in (requested, tokens))
    extra = (after - before) * plan.config.prompt.max_tokens / step
    return (
        f"up to {after} micro-batches per step instead of {before}, with the same gradient; each repeats a "
        f"prompt, so up to {extra:.0%} more tokens"
    )
