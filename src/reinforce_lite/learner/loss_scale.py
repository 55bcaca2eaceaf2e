"""The factor by which the loss of a float16 policy is multiplied, and its gradient divided.

float16 has no number between 0 and 6e-8, and none above 65,504. The gradients of activations are often
smaller than the former, so the loss is scaled up before the backward pass (Micikevicius et al. 2018, "Mixed
Precision Training", https://arxiv.org/abs/1710.03740). Where the scaled gradient is too large, the gradient
of the same step is computed again with half the factor. Factors are powers of two, so scaling rounds nothing.
"""

from dataclasses import dataclass

START, LARGEST = 2.0**16, 2.0**24
UPDATES_TO_GROW = 50
"""Updates without an overflow after which the factor is doubled. If that was too much, the next step is
computed twice: this adds at most 2% to the time of the updates."""


@dataclass(frozen=True, slots=True)
class LossScale:
    """A factor that depends on the run's earlier steps alone."""

    factor: float = START
    updates: int = 0
    """Since the factor last changed."""

    def after_overflow(self) -> "LossScale | None":
        """Half the factor; None where it is 1: then the gradient itself is too large."""
        return LossScale(self.factor / 2) if self.factor > 1 else None

    def after_update(self) -> "LossScale":
        """The same factor, or twice that when it has served for UPDATES_TO_GROW updates."""
        if self.updates + 1 < UPDATES_TO_GROW:
            return LossScale(self.factor, self.updates + 1)
        return LossScale(min(2 * self.factor, LARGEST))
