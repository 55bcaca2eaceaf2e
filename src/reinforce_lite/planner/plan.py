"""Whether a run fits, before a weight is loaded: what to choose so that it does, or the nearest thing.

    config ──shapes.read──▶ Shape ──footprint.parts──▶ [Part] ──▶ Plan ──plan_table──▶ beside other methods'

From the recipe and the model's config alone. Nothing of the task is loaded, so no code of a user's runs.
It changes nothing by itself: what it chooses is given to `train` by hand, and `train` refuses a recipe that
does not fit, with the same words.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from reinforce_lite import config
from reinforce_lite.config import Config
from reinforce_lite.errors import UsageError, WontFit
from reinforce_lite.models import policy as models
from reinforce_lite.pipeline import longest
from reinforce_lite.planner import estimate as footprint
from reinforce_lite.planner import model_shape as shapes
from reinforce_lite.planner.estimate import GB, MOMENTS, ROLLOUT, Part, Place, Scheme, in_gb
from reinforce_lite.planner.model_shape import Shape
from reinforce_lite.utils import memory

SMALLER = ("update.activation_checkpointing", "update.micro_batch_tokens", "rollout.answers_in_flight")
"""How much is held at once: these change nothing that is computed but rounding."""
CHOICES = ("update.state", *SMALLER)
"""The keys that a plan chooses."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One recipe at one place."""

    config: Config
    """With what was chosen."""
    asked: Config
    """The recipe as it is."""
    shape: Shape
    place: Place
    parts: tuple[Part, ...]

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
    def scheme(self) -> Scheme:
        return footprint.scheme(self.config, self.place)


def make(settings: Config, vram: float | None = None) -> Plan:
    """The recipe as it is where that fits, else with the choices that cost least of those that do; the
    smallest where none does.

    `vram` is a card's memory in GB; without it the plan is for the device that is here. Raises UsageError
    when the model or the device can't be had.
    """
    return best(as_it_is(settings, vram))


def as_it_is(settings: Config, vram: float | None = None) -> Plan:
    """The plan of a recipe without choices. Arguments and errors as for `make`."""
    section = settings.model
    place = _place(section, vram)
    footprint.scheme(settings, place)
    shape = shapes.read(section.name, section.trust_remote_code, longest(settings))
    return Plan(settings, settings, shape, place, footprint.parts(settings, shape, place))


def check(plan: Plan) -> None:
    """Raises WontFit, with what to choose or the nearest thing that would fit, when the plan does not."""
    if plan.fits:
        return
    assert plan.place.memory is not None
    smaller = best(plan)
    if smaller.fits:
        need, remedy = in_gb(plan.total) + " GB", f"it fits with {' '.join(flags(smaller))}"
    else:
        need, remedy = in_gb(smaller.total) + " GB at the least", f"nearest: {'; '.join(_nearest(smaller))}"
    raise WontFit(
        f"{plan.config.model.name} would need {need}, and there are {in_gb(plan.place.memory)} GB", remedy
    )


def flags(plan: Plan) -> list[str]:
    """What was chosen beside the recipe's own, as options of `train`."""
    found = {key: config.value(plan.config, key) for key in _chosen(plan)}
    return [config.option(key) + ("" if value is True else f" {value}") for key, value in found.items()]


def _chosen(plan: Plan) -> list[str]:
    return [key for key in CHOICES if config.value(plan.config, key) != config.value(plan.asked, key)]


def _place(section: config.Model, vram: float | None) -> Place:
    if vram is None:
        device = models.pick_device(section.device)
        return Place(device.type, models.pick_dtype(section.dtype, device), _memory(device))
    if not 0 < vram < math.inf:
        raise UsageError(f"a card can't have {vram:g} GB", "for example --vram 24")
    kind = "cuda" if section.device == "auto" else section.device
    # A card that is not here can't be asked; all that hold a model of some size compute bfloat16.
    wish = "bfloat16" if section.dtype == "auto" and kind != "cpu" else section.dtype
    return Place(kind, models.pick_dtype(wish, torch.device(kind)), round(vram * GB))


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory.installed_bytes() if device.type == "cpu" else None


def best(plan: Plan) -> Plan:
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
    for state in dict.fromkeys((asked.state, "8-bit")):
        for again in dict.fromkeys((asked.activation_checkpointing, True)):
            for tokens in _sizes(plan.asked):
                values = {
                    "update.state": state,
                    "update.activation_checkpointing": again,
                    "update.micro_batch_tokens": tokens,
                }
                yield _fewer_in_flight(_with(plan, values))


def _with(plan: Plan, values: Mapping[str, object]) -> Plan:
    chosen = config.override(plan.config, values)
    return replace(plan, config=chosen, parts=footprint.parts(chosen, plan.shape, plan.place))


def _fewer_in_flight(plan: Plan) -> Plan:
    """Half as many answers at once until the rollout fits, if it can."""
    most = plan.config.rollout.prompts_per_step * plan.config.rollout.samples_per_prompt
    most = max(most, plan.config.eval.n, plan.config.eval.validation_n)
    rows = min(plan.asked.rollout.answers_in_flight, most)
    while plan.place.memory is not None and plan.at(ROLLOUT) > plan.place.memory and rows > 1:
        rows //= 2
        plan = _with(plan, {"rollout.answers_in_flight": rows})
    return plan


def _sizes(settings: Config) -> Iterator[int]:
    """update.micro_batch_tokens, halved down to one longest answer with its prompt."""
    tokens, least = settings.update.micro_batch_tokens, footprint.one_answer(settings)
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
        if best(_with(other, {})).fits:
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


def costs(plan: Plan) -> dict[str, str]:
    """What each choice costs beside the recipe's own, by its key; empty where nothing was chosen."""
    words: dict[str, Callable[[Plan], str]] = {
        "update.state": _state_costs,
        "update.activation_checkpointing": lambda _: (
            "each layer is computed once more on the way back, with the same gradient: about a third more "
            "time in the update"
        ),
        "update.micro_batch_tokens": _micro_batch_costs,
        "rollout.answers_in_flight": lambda p: (
            f"at most {p.config.rollout.answers_in_flight} at once instead of "
            f"{p.asked.rollout.answers_in_flight} answers: more decoding steps, each somewhat shorter"
        ),
    }
    return {key: words[key](plan) for key in _chosen(plan)}


def _state_costs(plan: Plan) -> str:
    return (
        f"{plan.scheme.why}: {plan.scheme.total:.4g} bytes a parameter instead of "
        f"{footprint.scheme(plan.asked, plan.place).total:g}; not the same numbers (docs/memory.md), and "
        'it needs pip install "reinforce-lite[8bit]"'
    )


def _micro_batch_costs(plan: Plan) -> str:
    step = footprint.step_tokens(plan.config, plan.shape)
    tokens, asked = plan.config.update.micro_batch_tokens, plan.asked.update.micro_batch_tokens
    own, now = (math.ceil(step / size) for size in (asked, tokens))
    again = (now - own) * plan.config.prompt.max_tokens / step
    return (
        f"a step's answers pass in up to {now} parts instead of {own}, with the same gradient; each begins "
        f"with a prompt, so up to {again:.0%} more tokens"
    )
