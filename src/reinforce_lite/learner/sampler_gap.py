"""How far the engine that sampled is from the policy that is trained, by the tokens that are learned from.

The loss assumes that completions are drawn from the policy's present weights. Engine and update compute each
token's log-probability by different code. Up to rounding the two are equal, or something is wrong, such as
weights that did not reach the engine. An update computes its own anyway, so this needs no further pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Self

LARGEST_EXPONENT = 50.0
"""Keeps importance weights finite and above 0."""


@dataclass(frozen=True, slots=True)
class SamplerGap:
    """Differences of log-probabilities, update minus engine, in nats.

    Both are at the temperature at which the engine recorded its own: 1, or with `objective.engine_correction`
    the rollout's. Held as sums, so that the gaps of micro-batches and processes can be added.
    """

    tokens: int = 0
    total: float = 0.0
    """Of the absolute differences."""
    largest: float = 0.0
    completions: int = 0
    weights: float = 0.0
    """Sum of the completions' importance weights, pi_update / pi_engine."""
    squares: float = 0.0
    """Sum of their squares."""

    @classmethod
    def measure(cls, completions: Sequence[Sequence[float]]) -> Self:
        """From the differences of each completion's tokens."""
        sizes = [abs(difference) for completion in completions for difference in completion]
        exponents = [max(-LARGEST_EXPONENT, min(LARGEST_EXPONENT, sum(c))) for c in completions]
        weights = list(map(exp, exponents))
        return cls(
            tokens=len(sizes),
            total=sum(sizes),
            largest=max(sizes, default=0.0),
            completions=len(weights),
            weights=sum(weights),
            squares=sum(weight * weight for weight in weights),
        )

    def __add__(self, other: "SamplerGap") -> "SamplerGap":
        return SamplerGap(
            self.tokens + other.tokens,
            self.total + other.total,
            max(self.largest, other.largest),
            self.completions + other.completions,
            self.weights + other.weights,
            self.squares + other.squares,
        )

    @property
    def mean(self) -> float:
        """The mean absolute difference per token."""
        return self.total / max(1, self.tokens)

    @property
    def effective_sample_size(self) -> float:
        """As a fraction of n: (sum of weights)^2 / (n x sum of squares) (Kong 1992,
        https://doi.org/10.1080/01621459.1994.10476469).
        """
        return self.weights**2 / (self.completions * self.squares) if self.squares else 1.0


NO_GAP = SamplerGap()
"""Of no tokens."""
