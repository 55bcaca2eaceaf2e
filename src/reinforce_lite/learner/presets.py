"""The members of the objective family as rows of data; `learner.objective` has the formulas.

Without torch, so that the report of a run can tell how its advantages came about.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from reinforce_lite.config import (
    Baseline,
    EngineCorrection,
    GradientSamples,
    LossNormalization,
    PresetName,
    Scale,
)

EPSILON = 1e-8
"""Added to a standard deviation. If it is 0, the advantage is huge but finite; `advantage_clip` bounds it."""


@dataclass(frozen=True, slots=True)
class Objective:
    """One member of the family; the function of `learner.objective` that reads a part documents it."""

    baseline: Baseline
    scale: Scale
    advantage_clip: float | None
    gradient_samples: GradientSamples
    loss_normalization: LossNormalization
    logprob_temperature: float | Literal["sampling"]
    engine_correction: EngineCorrection = "none"

    def temperature(self, sampling: float) -> float:
        """The temperature at which log pi is differentiated when completions are drawn at `sampling`."""
        return sampling if self.logprob_temperature == "sampling" else self.logprob_temperature


PRESETS: dict[PresetName, Objective] = {
    "reinforce-lite": Objective("leave-one-out", "leave-one-out", 2.0, "all", "constant", "sampling"),
    "article": Objective("leave-one-out", "leave-one-out", 2.0, "one", "sequence-sum", 1.0),
    "rloo": Objective("leave-one-out", "none", None, "all", "sequence-sum", "sampling"),
    "grpo": Objective("group", "group", None, "all", "sequence-mean", "sampling"),
    "dr-grpo": Objective("group", "none", None, "all", "constant", "sampling"),
    "monte-carlo": Objective("none", "none", None, "all", "sequence-sum", "sampling"),
}


def build_objective(preset: PresetName, **parts: Any) -> Objective:
    """A preset with some parts replaced. None keeps the preset's part; advantage_clip "none" is no clip."""
    changes = {name: value for name, value in parts.items() if value is not None}
    if changes.get("advantage_clip") == "none":
        changes["advantage_clip"] = None
    return replace(PRESETS[preset], **changes)
