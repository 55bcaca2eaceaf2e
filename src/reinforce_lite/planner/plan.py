"""Whether a run fits, before a weight is loaded: what to choose so that it does, or the nearest thing.

    config ──shapes.read──▶ Shape ──estimate.parts──▶ [Part] ──▶ Plan ──plan_table──▶ beside other methods'

From the recipe and the model's config alone. Nothing of the task is loaded, so no code of a user's runs.
It changes nothing by itself: what it chooses is given to `train` by hand, and `train` refuses a recipe that
does not fit, with the same words.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from reinforce_lite.config import Config, ModelConfig, config_value, option_flag, override_config
from reinforce_lite.errors import DoesNotFitError, UsageError
from reinforce_lite.models.device import pick_device, pick_dtype
from reinforce_lite.pipeline import longest
from reinforce_lite.planner import estimate
from reinforce_lite.planner.estimate import (
    GB,
    MOMENTS,
    ROLLOUT,
    MemoryPart,
    ParameterScheme,
    Target,
    in_gb,
    memory_parts,
    parameter_scheme,
)
from reinforce_lite.planner.model_shape import ModelShape, read_shape
from reinforce_lite.utils import memory

MEMORY_KEYS = ("update.activation_checkpointing", "update.micro_batch_tokens", "rollout.max_num_seqs")
"""How much is held at once: these change nothing that is computed but rounding."""
PLAN_KEYS = ("update.optimizer_state", *MEMORY_KEYS)
"""The keys that a plan chooses."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One recipe at one place."""

    config: Config
    """With what was chosen."""
    asked: Config
    """The recipe as it is."""
    shape: ModelShape
    place: Target
    parts: tuple[MemoryPart, ...]

    def at(self, moment: str) -> int:
        """Bytes held at that moment."""
        return sum(p.bytes for p in self.parts if moment in p.moments)

    @property
    def peak(self) -> str:
        """The moment at which most is held."""
        return max(MOMENTS, key=self.at)

    @property
    def total(self) -> int:
        """Bytes held at the peak."""
        return self.at(self.peak)

    @property
    def fits(self) -> bool:
        return self.place.memory is None or self.total <= self.place.memory

    @property
    def scheme(self) -> ParameterScheme:
        return parameter_scheme(self.config, self.place)


def make_plan(config: Config, vram: float | None = None) -> Plan:
    """The recipe as it is where that fits, else with the choices that cost least of those that do; the
    smallest where none does.

    `vram` is a card's memory in GB; without it the plan is for the device that is here. Raises UsageError
    when the model or the device can't be had.
    """
    return best_plan(plan_unchanged(config, vram))


def plan_unchanged(config: Config, vram: float | None = None) -> Plan:
    """The plan of a recipe without choices. Arguments and errors as for `make`."""
    model = config.model
    place = _target(model, vram)
    parameter_scheme(config, place)
    shape = read_shape(model.name, model.trust_remote_code, longest(config))
    return Plan(config, config, shape, place, memory_parts(config, shape, place))


def check_fits(plan: Plan) -> None:
    """Raises WontFit, with what to choose or the nearest thing that would fit, when the plan does not."""
    if plan.fits:
        return
    assert plan.place.memory is not None
    smaller = best_plan(plan)
    if smaller.fits:
        need, remedy = in_gb(plan.total) + " GB", f"it fits with {' '.join(chosen_flags(smaller))}"
    else:
        need, remedy = in_gb(smaller.total) + " GB at the least", f"nearest: {'; '.join(_nearest(smaller))}"
    raise DoesNotFitError(
        f"{plan.config.model.name} would need {need}, and there are {in_gb(plan.place.memory)} GB", remedy
    )


def chosen_flags(plan: Plan) -> list[str]:
    """What was chosen beside the recipe's own, as options of `train`."""
    found = {key: config_value(plan.config, key) for key in _chosen(plan)}
    return [option_flag(key) + ("" if value is True else f" {value}") for key, value in found.items()]


def _chosen(plan: Plan) -> list[str]:
    return [key for key in PLAN_KEYS if config_value(plan.config, key) != config_value(plan.asked, key)]


def _target(model: ModelConfig, vram: float | None) -> Target:
    if vram is None:
        device = pick_device(model.device)
        return Target(device.type, pick_dtype(model.dtype, device), _memory(device))
    if not 0 < vram < math.inf:
        raise UsageError(f"a card can't have {vram:g} GB", "for example --vram 24")
    kind = "cuda" if model.device == "auto" else model.device
    # A card that is not here can't be asked; all that hold a model of some size compute bfloat16.
    wish = "bfloat16" if model.dtype == "auto" and kind != "cpu" else model.dtype
    return Target(kind, pick_dtype(wish, torch.device(kind)), round(vram * GB))


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory.installed_bytes() if device.type == "cpu" else None


def best_plan(plan: Plan) -> Plan:
    """The first of the candidates that fits, or the last."""
    found = plan
    for candidate in _candidates(plan):
        found = candidate
        if found.fits:
            break
    return found


def _candidates(plan: Plan) -> Iterator[Plan]:
    """From the recipe as it is to the smallest: what costs least is given up first."""
    yield plan
    asked = plan.asked.update
    for state in dict.fromkeys((asked.optimizer_state, "8-bit")):
        for again in dict.fromkeys((asked.activation_checkpointing, True)):
            for tokens in _sizes(plan.asked):
                values = {
                    "update.optimizer_state": state,
                    "update.activation_checkpointing": again,
                    "update.micro_batch_tokens": tokens,
                }
                yield _fewer_in_flight(_with(plan, values))


def _with(plan: Plan, values: Mapping[str, object]) -> Plan:
    chosen = override_config(plan.config, values)
    return replace(plan, config=chosen, parts=memory_parts(chosen, plan.shape, plan.place))


def _fewer_in_flight(plan: Plan) -> Plan:
    """Half as many answers at once until the rollout fits, if it can."""
    most = plan.config.rollout.prompts_per_step * plan.config.rollout.group_size
    most = max(most, plan.config.eval.n, plan.config.eval.validation_n)
    rows = min(plan.asked.rollout.max_num_seqs, most)
    while plan.place.memory is not None and plan.at(ROLLOUT) > plan.place.memory and rows > 1:
        rows //= 2
        plan = _with(plan, {"rollout.max_num_seqs": rows})
    return plan


def _sizes(config: Config) -> Iterator[int]:
    """update.micro_batch_tokens, halved down to one longest answer with its prompt."""
    tokens, least = config.update.micro_batch_tokens, estimate.one_answer(config)
    yield tokens
    while tokens > least:
        tokens = max(tokens // 2, least)
        yield tokens


def _nearest(plan: Plan) -> list[str]:
    """What would fit: a card, a smaller model."""
    memory, kept = plan.place.memory, plan.scheme
    assert memory is not None
    found = [f"--vram {_card(plan)} holds it"]
    if plan.place.dtype_name == "float32":
        other = replace(plan, place=replace(plan.place, dtype=torch.bfloat16))
        if best_plan(_with(other, {})).fits:
            found.append("--model.dtype bfloat16 fits")
    beside = plan.total - kept.total * plan.shape.parameters
    if memory > beside:
        found.append(f"a model of about {int((memory - beside) / kept.total):,} parameters at most")
    return found


def _card(plan: Plan) -> int:
    """The smallest whole number of GB that holds it; the cache grows with the card, so it is searched."""
    size = 0
    while math.ceil(plan.total / GB) > size:
        size = math.ceil(plan.total / GB)
        plan = _with(replace(plan, place=replace(plan.place, memory=size * GB)), {})
    return size


def choice_costs(plan: Plan) -> dict[str, str]:
    """What each choice costs beside the recipe's own, by its key; empty where nothing was chosen."""
    words: dict[str, Callable[[Plan], str]] = {
        "update.optimizer_state": _state_costs,
        "update.activation_checkpointing": lambda _: (
            "each layer is computed once more on the way back, with the same gradient: about a third more "
            "time in the update"
        ),
        "update.micro_batch_tokens": _micro_batch_costs,
        "rollout.max_num_seqs": lambda p: (
            f"at most {p.config.rollout.max_num_seqs} at once instead of "
            f"{p.asked.rollout.max_num_seqs} answers: more decoding steps, each somewhat shorter"
        ),
    }
    return {key: words[key](plan) for key in _chosen(plan)}


def _state_costs(plan: Plan) -> str:
    return (
        f"{plan.scheme.why}: {plan.scheme.total:.4g} bytes a parameter instead of "
        f"{parameter_scheme(plan.asked, plan.place).total:g}; not the same numbers (docs/memory.md), and "
        'it needs pip install "reinforce-lite[8bit]"'
    )


def _micro_batch_costs(plan: Plan) -> str:
    step = estimate.step_tokens(plan.config, plan.shape)
    tokens, asked = plan.config.update.micro_batch_tokens, plan.asked.update.micro_batch_tokens
    own, now = (math.ceil(step / size) for size in (asked, tokens))
    again = (now - own) * plan.config.prompt.max_tokens / step
    return (
        f"a step's answers pass in up to {now} parts instead of {own}, with the same gradient; each begins "
        f"with a prompt, so up to {again:.0%} more tokens"
    )
