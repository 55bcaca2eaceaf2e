"""Whether a run fits, before a weight is loaded: the largest micro-batches that do, or the nearest thing.

    config ──shapes.read──▶ Shape ──footprint.parts──▶ [Part] ──▶ Plan ──plan_table──▶ beside other methods'

From the recipe and the model's config alone. Nothing of the task is loaded, so no code of a user's runs.
It says what would fit and changes nothing: the size that it names is given to `train` by hand.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from reinforce_lite import config, footprint, models, shapes
from reinforce_lite.config import Config
from reinforce_lite.errors import UsageError, WontFit
from reinforce_lite.footprint import GB, MOMENTS, SCHEMES, Part, Place, in_gb
from reinforce_lite.road import longest
from reinforce_lite.shapes import Shape


@dataclass(frozen=True, slots=True)
class Plan:
    """One recipe at one place, with one size of micro-batches."""

    config: Config
    """Its update.micro_batch_tokens is what was chosen."""
    asked: int
    """The recipe's own update.micro_batch_tokens."""
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


def make(settings: Config, vram: float | None = None) -> Plan:
    """The plan with the largest micro-batches that fit, or with the smallest where none do.

    `vram` is a card's memory in GB; without it the plan is for the device that is here. Raises UsageError
    when the model or the device can't be had.
    """
    section = settings.model
    place = _place(section, vram)
    shape = shapes.read(section.name, section.trust_remote_code, longest(settings))
    return _best(settings, shape, place)


def check(plan: Plan) -> None:
    """Raises WontFit, with the nearest thing that would fit, when the plan does not."""
    if plan.fits:
        return
    assert plan.place.memory is not None
    raise WontFit(
        f"{plan.config.model.name} would need {in_gb(plan.total)} GB with the smallest micro-batches, and "
        f"there are {in_gb(plan.place.memory)} GB",
        f"nearest: {'; '.join(_nearest(plan))}",
    )


def _place(section: config.Model, vram: float | None) -> Place:
    if vram is None:
        device = models.pick_device(section.device)
        there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        return Place(device.type, models.pick_dtype(section.dtype, device), there)
    if not 0 < vram < math.inf:
        raise UsageError(f"a card can't have {vram:g} GB", "for example --vram 24")
    kind = "cuda" if section.device == "auto" else section.device
    # A card that is not here can't be asked; all that hold a model of some size compute bfloat16.
    wish = "bfloat16" if section.dtype == "auto" and kind != "cpu" else section.dtype
    return Place(kind, models.pick_dtype(wish, torch.device(kind)), round(vram * GB))


def _best(settings: Config, shape: Shape, place: Place) -> Plan:
    plans = [_plan(settings, shape, place, tokens) for tokens in _sizes(settings)]
    return next((p for p in plans if p.fits), plans[-1])


def _plan(settings: Config, shape: Shape, place: Place, tokens: int) -> Plan:
    asked = settings.update.micro_batch_tokens
    chosen = config.override(settings, {"update.micro_batch_tokens": tokens})
    return Plan(chosen, asked, shape, place, footprint.parts(chosen, shape, place))


def _sizes(settings: Config) -> Iterator[int]:
    """update.micro_batch_tokens, halved down to one longest answer with its prompt."""
    tokens, least = settings.update.micro_batch_tokens, footprint.one_answer(settings)
    yield tokens
    while tokens > least:
        tokens = max(tokens // 2, least)
        yield tokens


def _nearest(plan: Plan) -> list[str]:
    """What would fit: a card, the other dtype if it does, a smaller model."""
    memory, scheme = plan.place.memory, plan.place.scheme
    assert memory is not None
    found = [f"--vram {_card(plan)} holds it"]
    for dtype in set(SCHEMES) - {plan.place.dtype_name}:
        other = replace(plan.place, dtype=getattr(torch, dtype))
        if _best(plan.config, plan.shape, other).fits:
            found.append(f"--model.dtype {dtype} fits, at the speed of its products")
    beside = plan.total - scheme.total * plan.shape.parameters
    if memory > beside:
        found.append(f"a model of about {int((memory - beside) / scheme.total):,} parameters at most")
    return found


def _card(plan: Plan) -> int:
    """The smallest whole number of GB that holds it; the cache grows with the card, so it is searched."""
    size = 0
    while math.ceil(plan.total / GB) > size:
        size = math.ceil(plan.total / GB)
        tokens = plan.config.update.micro_batch_tokens
        plan = _plan(plan.config, plan.shape, replace(plan.place, memory=size * GB), tokens)
    return size


def costs(plan: Plan) -> str:
    """What the micro-batch that was chosen costs beside the recipe's own; empty when it is that."""
    chosen = plan.config.update.micro_batch_tokens
    if chosen == plan.asked:
        return ""
    step = footprint.step_tokens(plan.config, plan.shape)
    own, now = (math.ceil(step / tokens) for tokens in (plan.asked, chosen))
    again = (now - own) * plan.config.prompt.max_tokens / step
    return (
        f"the recipe's own {plan.asked:,} would not fit: a step's answers pass in up to {now} parts instead "
        f"of {own}, with the same gradient; each begins with a prompt, so up to {again:.0%} more tokens"
    )
