"""Does a run fit into memory, and if not, which settings make it fit? Answered before a weight is loaded.

    config ──read_shape──▶ ModelShape ──memory_parts──▶ MemoryPart, ... ──▶ Plan ──cli/plan_table──▶ tables

A plan needs the recipe and the model's config alone: the task is not loaded, so no user code runs. Planning
changes nothing: a person passes the suggested settings to `train`, which refuses a recipe that does not fit
with the same message.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import torch

from reinforce_lite.config import Config, ModelConfig, config_value, option_flag, option_text, override_config
from reinforce_lite.errors import DoesNotFitError, UsageError
from reinforce_lite.models.adapter import resolve_adapter
from reinforce_lite.models.device import pick_device, pick_dtype
from reinforce_lite.models.distributed import local_size, size
from reinforce_lite.planner import estimate
from reinforce_lite.planner.model_shape import ModelShape, read_shape
from reinforce_lite.planner.schemes import ParameterScheme, Target, parameter_scheme, shard_count
from reinforce_lite.utils import memory

MEMORY_KEYS = ("update.activation_checkpointing", "update.micro_batch_tokens", "rollout.max_num_seqs")
"""Keys that set how much is held at a time; they change results by rounding alone."""
ADAPTER_RANK = 16
"""Of the adapter that is suggested where all weights do not fit."""
PLAN_KEYS = (
    *("update.shard_optimizer", "update.shard_weights", "update.optimizer_state", "update.offload_optimizer"),
    *MEMORY_KEYS,
)
"""The keys that a plan may choose."""
NOT_SHARDED: dict[str, object] = {"update.shard_optimizer": False, "update.shard_weights": False}
SMALLER = 0.75
"""The part of the planned memory to aim at where the plan fits and memory ran out all the same."""


@dataclass(frozen=True)
class Plan:
    """The memory of one recipe on one target."""

    config: Config
    """The recipe with the choices of the plan."""
    requested: Config
    """The recipe as given."""
    shape: ModelShape
    target: Target

    @cached_property
    def parts(self) -> tuple[estimate.MemoryPart, ...]:
        """Everything that a run holds in any of PHASES."""
        return estimate.memory_parts(self.config, self.shape, self.target)

    def bytes_in(self, phase: str) -> int:
        """Bytes held in one of PHASES."""
        return sum(part.bytes for part in self.parts if phase in part.phases)

    @property
    def peak_phase(self) -> str:
        """The phase in which most is held."""
        return max(estimate.PHASES, key=self.bytes_in)

    @property
    def total(self) -> int:
        """Bytes held in the peak phase."""
        return self.bytes_in(self.peak_phase)

    @property
    def fits(self) -> bool:
        """Whether the total is within the memory of the target."""
        return self.target.memory is None or self.total <= self.target.memory

    @property
    def host_bytes(self) -> int:
        """What a run on a GPU needs of the machine's own memory."""
        return estimate.host_bytes(self.config, self.shape, self.target)

    @property
    def scheme(self) -> ParameterScheme:
        """What is kept of each parameter."""
        return parameter_scheme(self.config, self.target)


def plan_unchanged(
    config: Config, vram: float | None = None, trust_remote_code: bool = False, processes: int | None = None
) -> Plan:
    """Plan a recipe without choosing anything.

    `vram` is the memory of a GPU in GB; by default the plan is for this machine's device. `processes` are
    those that train together, by default those of which this is one. Raises UsageError if the model or the
    device is not available, and for memory or processes that no machine can have.
    """
    if processes is not None and processes < 1:
        raise UsageError(f"{processes} processes can't train", "give 1 or more, for example --processes 2")
    target = replace(_target(config.model, vram), processes=processes or size())
    base, adapter, _ = resolve_adapter(config.model.name, config.adapter)
    config = config.model_copy(update={"adapter": adapter})
    parameter_scheme(config, target)  # raises before the model is looked for
    shape = read_shape(base, trust_remote_code, config.max_sequence_tokens)
    return Plan(config, config, shape, target)


def check_fits(plan: Plan) -> None:
    """Raise DoesNotFitError if the plan does not fit; its remedy names settings or hardware that would.

    Also if the machine's own memory is too small for offloaded moments and for saving the model.
    """
    host_memory = plan.target.host_memory
    if host_memory is not None and plan.host_bytes > host_memory:
        offloads, shards = plan.config.update.offload_optimizer, shard_count(plan.config, plan.target) > 1
        what = "offloaded moments and saving the model take" if offloads else "saving the model takes"
        remedy = "use a machine or container with more memory, or a smaller model"
        if shards:
            what = "saving the model and the sharded state take"
            remedy = f"switch update.shard_optimizer and update.shard_weights off, or {remedy}"
        raise DoesNotFitError(
            f"{what} {estimate.in_gb(plan.host_bytes)} GB of the machine's own memory, "
            f"but it has {estimate.in_gb(host_memory)} GB",
            f"leave out {option_flag('update.offload_optimizer')}, or {remedy}" if offloads else remedy,
        )
    if plan.fits:
        return
    best = best_plan(plan)
    if best.fits:
        needed, remedy = estimate.in_gb(plan.total), f"it fits with {' '.join(chosen_flags(best))}"
    else:
        needed = f"at least {estimate.in_gb(best.total)}"
        remedy = f"what would fit: {'; '.join(_alternatives(best))}"
    there = memory_text(plan.target)
    raise DoesNotFitError(
        f"{plan.config.model.name} needs {needed} GB of memory, but there are {there}", remedy
    )


def memory_text(target: Target) -> str:
    """How much a run can have: 24.00 GB, or 20.10 GB free of 25.76 GB where a GPU is shared."""
    assert target.memory is not None
    free = f"{estimate.in_gb(target.memory)} GB"
    if target.installed is None or target.installed == target.memory:
        return free
    return f"{free} free of {estimate.in_gb(target.installed)} GB"


def chosen_flags(plan: Plan) -> list[str]:
    """The plan's choices as options of `train`; empty if the recipe is unchanged."""
    values = {key: config_value(plan.config, key) for key in _chosen_keys(plan)}
    return [option_text(key, value) for key, value in values.items()]


def _chosen_keys(plan: Plan) -> list[str]:
    return [key for key in PLAN_KEYS if config_value(plan.config, key) != config_value(plan.requested, key)]


def _target(model: ModelConfig, vram: float | None) -> Target:
    if vram is None:
        return _this_machine(pick_device(model.device), model.dtype)
    if not 0 < vram < math.inf:
        raise UsageError(f"a GPU can't have {vram:g} GB of memory", "for example --vram 24")
    device_type = "cuda" if model.device == "auto" else model.device
    # A GPU that is not in this machine can't be queried; those that are large enough have bfloat16 units.
    dtype = "bfloat16" if model.dtype == "auto" and device_type != "cpu" else model.dtype
    compute = pick_dtype(dtype, torch.device(device_type))
    return Target(device_type, compute, round(vram * estimate.GB))


def _this_machine(device: torch.device, dtype: str) -> Target:
    """A GPU has what other programs leave; on a CPU they may be moved out of memory."""
    compute, host_memory = pick_dtype(dtype, device), memory.installed_bytes() // local_size()
    if device.type == "cpu":
        return Target(device.type, compute, host_memory)
    if device.type != "cuda":
        return Target(device.type, compute, None, None, host_memory)
    total = int(torch.cuda.get_device_properties(device).total_memory)
    return Target(device.type, compute, memory.usable_bytes(device), total, host_memory)


def best_plan(plan: Plan) -> Plan:
    """The plan itself if it fits, else the first choices that fit, else the last and smallest ones.

    What costs least is given up first.
    """
    update = plan.requested.update
    checkpointing = dict.fromkeys((update.activation_checkpointing, True))
    sizes = tuple(_micro_batch_sizes(plan.requested))
    best = plan
    for state, recompute, tokens in product(_optimizer_states(plan), checkpointing, sizes):
        if best.fits:
            break
        values = {"update.activation_checkpointing": recompute, "update.micro_batch_tokens": tokens}
        best = _shrink_rollout(replace(plan, config=override_config(plan.requested, state | values)))
    return best


def _optimizer_states(plan: Plan) -> Iterator[dict[str, object]]:
    """What the optimizer may keep, and where: the recipe's choice, 8 bits, and these off the device."""
    update = plan.requested.update
    yield {
        "update.optimizer_state": update.optimizer_state,
        "update.offload_optimizer": update.offload_optimizer,
    }
    if update.offload_optimizer or plan.requested.adapter.rank:
        return
    if plan.target.processes > 1 and update.optimizer_state != "8-bit" and not update.shard_weights:
        if not update.shard_optimizer:
            yield {"update.shard_optimizer": True}
        if update.optimizer_state == "32-bit" and plan.target.dtype != torch.float16:
            yield {"update.shard_weights": True}
    if plan.target.dtype == torch.float16:
        return
    if update.optimizer_state != "8-bit":
        yield {"update.optimizer_state": "8-bit", **NOT_SHARDED}
    offloaded: dict[str, object] = {
        "update.optimizer_state": "8-bit",
        "update.offload_optimizer": True,
        **NOT_SHARDED,
    }
    needed = replace(plan, config=override_config(plan.requested, offloaded)).host_bytes
    host_memory = plan.target.host_memory
    if plan.target.device_type == "cuda" and (host_memory is None or needed <= host_memory):
        yield offloaded


def plan_after_oom(plan: Plan, usable: int | None) -> Plan:
    """Other choices for a recipe that ran out of memory where `usable` bytes are left (None: unknown).

    If the recipe would fit into these by the plan, the choices need at most SMALLER of its planned memory.
    """
    short = usable is not None and usable < plan.total
    goal = usable if short else round(SMALLER * plan.total)
    choices = best_plan(replace(plan, target=replace(plan.target, memory=goal)))
    return replace(choices, target=replace(plan.target, memory=usable))


def _shrink_rollout(plan: Plan) -> Plan:
    """Halve rollout.max_num_seqs until the rollout fits, if it can."""
    rollout, evaluation = plan.config.rollout, plan.config.eval
    largest_call = max(rollout.prompts_per_step * rollout.group_size, evaluation.n, evaluation.validation_n)
    sequences = min(plan.requested.rollout.max_num_seqs, largest_call)
    limit = plan.target.memory
    while limit is not None and plan.bytes_in(estimate.ROLLOUT) > limit and sequences > 1:
        sequences //= 2
        plan = replace(plan, config=override_config(plan.config, {"rollout.max_num_seqs": sequences}))
    return plan


def _micro_batch_sizes(config: Config) -> Iterator[int]:
    """update.micro_batch_tokens, halved down to one longest prompt with its completion."""
    tokens = config.update.micro_batch_tokens
    smallest = config.prompt.max_tokens + config.rollout.max_new_tokens
    yield tokens
    while tokens > smallest:
        tokens = max(tokens // 2, smallest)
        yield tokens


def _alternatives(plan: Plan) -> list[str]:
    """What would fit: more memory, another dtype, an adapter, its base in 8 bits, a smaller model."""
    limit = plan.target.memory
    assert limit is not None
    alternatives = [f"{_smallest_memory(plan)} GB of memory"]
    if plan.target.dtype_name == "float32":
        in_bfloat16 = replace(plan, target=replace(plan.target, dtype=torch.bfloat16))
        if best_plan(in_bfloat16).fits:
            alternatives.append("--model.dtype bfloat16")
    int8: dict[str, object] = {"model.base_weights": "int8"}
    adapter: dict[str, object] = {"adapter.rank": ADAPTER_RANK, "update.optimizer_state": "32-bit"}
    if plan.requested.update.offload_optimizer:
        adapter["update.offload_optimizer"] = False
    if plan.requested.update.shard_weights:
        adapter["update.shard_weights"] = False
    candidates = [int8] if plan.config.adapter.rank else [adapter, adapter | int8]
    if plan.config.rollout.engine == "vllm":  # which has no weights in 8 bits
        candidates = [changes for changes in candidates if int8.keys().isdisjoint(changes)]
    for changes in candidates:
        adapted = override_config(plan.requested, changes)
        if best_plan(replace(plan, config=adapted, requested=adapted)).fits:
            alternatives.append(" ".join(option_text(key, value) for key, value in changes.items()))
            break
    bytes_per_parameter = plan.scheme.total
    other_bytes = plan.total - bytes_per_parameter * plan.shape.parameters
    if limit > other_bytes:
        parameters = int((limit - other_bytes) / bytes_per_parameter)
        alternatives.append(f"a model of about {parameters:,} parameters at most")
    return alternatives


def _smallest_memory(plan: Plan) -> int:
    """The smallest whole number of GB that holds the plan. The cache grows with the GPU: iterate."""
    size = 0
    while math.ceil(plan.total / estimate.GB) > size:
        size = math.ceil(plan.total / estimate.GB)
        plan = replace(plan, target=replace(plan.target, memory=size * estimate.GB, installed=None))
    return size


def choice_costs(plan: Plan) -> dict[str, str]:
    """What each choice costs compared with the recipe, by key; empty if nothing was chosen."""
    config, requested = plan.config, plan.requested
    step = estimate.max_step_tokens(config, plan.shape)
    before, after = (math.ceil(step / c.update.micro_batch_tokens) for c in (requested, config))
    repeated = (after - before) * config.prompt.max_tokens / step
    before_bytes = parameter_scheme(requested, plan.target).total
    costs = {
        "update.optimizer_state": (
            f"{plan.scheme.total:.4g} bytes per parameter instead of {before_bytes:g} "
            f"({plan.scheme.description}); results differ (docs/memory.md), "
            'and it needs pip install "reinforce-lite[8bit]"'
        ),
        "update.shard_optimizer": (
            f"each of {plan.target.processes} processes keeps a part of the optimizer's state, with the same "
            "results; but a run that loses a process resumes from its last checkpoint"
            if config.update.shard_optimizer
            else "8-bit state can't be sharded"
        ),
        "update.shard_weights": (
            f"each of {plan.target.processes} processes keeps a part of the gradient and of the optimizer's "
            "state, with the same results; but the update is slower (weights are gathered layer by layer, "
            "and the prompt is computed again for each completion), running out of memory in the update ends "
            "the run, and a run that loses a process resumes from its last checkpoint"
            if config.update.shard_weights
            else "8-bit state can't be sharded"
        ),
        "update.offload_optimizer": (
            "the moments are in the machine's own memory, which then holds up to "
            f"{estimate.in_gb(plan.host_bytes)} GB of the run; they cross the bus twice in every step; on "
            "an H100 the optimizer step of a 3B model took 0.55 s instead of 0.30"
        ),
        "update.activation_checkpointing": (
            "each layer is computed a second time in the backward pass, with the same gradient; the update "
            "takes about a third longer"
        ),
        "update.micro_batch_tokens": (
            f"up to {after} micro-batches per step instead of {before}, with the same gradient; each repeats "
            f"a prompt, so up to {repeated:.0%} more tokens"
        ),
        "rollout.max_num_seqs": (
            f"{config.rollout.max_num_seqs} sequences at a time instead of {requested.rollout.max_num_seqs}; "
            "more decoding steps, each somewhat faster"
        ),
    }
    return {key: costs[key] for key in _chosen_keys(plan)}
