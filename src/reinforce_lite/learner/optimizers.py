"""AdamW (Loshchilov and Hutter 2019), with its two moments in 32, 16 or 8 bits.

    32-bit  float32 weights and moments; behind a bfloat16 policy these are finer copies, its masters
    16-bit  bfloat16 weights and moments, as the first implementation had them: at a rate of 1e-6 most
            updates are smaller than half of what bfloat16 can tell apart, and are lost
    8-bit   the policy's own weights; moments of 8 bits with a scale for each 256 (Dettmers et al. 2022).
            bfloat16 weights are rounded up or down at random, so that updates are right on average

The arithmetic is torch's and torchao's. torchao's optimizer would compile it; here it runs as it is, on
pieces of large tensors, so that it needs no compiler and little memory. What is too small to be worth 8
bits (gains and biases) stays in float32, moments and weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from reinforce_lite.config import UpdateConfig
from reinforce_lite.errors import missing_extra

BLOCK = 256
"""Numbers that share a scale."""
SMALL = 4096
"""Tensors with fewer numbers stay in float32."""
PIECE = 2**20
"""Numbers of a large tensor that are moved at once."""
MAP = 1024
"""Bytes of the table that says what each of 256 codes stands for, float32, one for each moment."""
PER_NUMBER = 150
"""Bytes that torchao's arithmetic holds for each number of a piece; measured by benchmarks/memory.py."""
EPSILON = 1e-8
"""Beside the root of the second moment."""


class Optimizer(Protocol):
    """Moves weights by the gradients that are left with them."""

    def step(self, rate: float, seed: int) -> None:
        """One update at a learning rate; `seed` is that of its random rounding."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The moments and the count of steps, as flat named tensors; empty before the first step."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...

    def reset(self) -> None:
        """Back to how it was before the first step."""
        ...


def make_optimizer(config: UpdateConfig, weights: Mapping[str, Tensor]) -> Optimizer:
    """The optimizer of some weights, by name. Raises UsageError when its package is missing."""
    check_optimizer(config)
    return AdamW8bit(weights, config) if config.optimizer_state == "8-bit" else AdamW(weights, config)


def check_optimizer(config: UpdateConfig) -> None:
    """Raises UsageError when the package that the optimizer's state needs is missing."""
    if config.optimizer_state == "8-bit" and find_spec("torchao") is None:
        raise missing_extra("8bit", "update.optimizer_state = 8-bit")


class AdamW:
    """torch's, in the dtype of the weights."""

    def __init__(self, weights: Mapping[str, Tensor], config: UpdateConfig) -> None:
        self.weights = weights
        self.optimizer = torch.optim.AdamW(
            list(weights.values()),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self, rate: float, seed: int) -> None:
        """See `Optimizer`; nothing is random here."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """See `Optimizer`."""
        held = self.optimizer.state
        return {f"{key}/{name}": t for name, w in self.weights.items() for key, t in held.get(w, {}).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        for name, weight in self.weights.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{key}/{name}" in state:  # a fused AdamW counts its steps on the device
                    self.optimizer.state[weight][key] = state[f"{key}/{name}"].to(weight.device)

    def reset(self) -> None:
        """See `Optimizer`."""
        self.optimizer.state.clear()


@dataclass(slots=True)
class _Piece:
    """Some of a weight's numbers in a row."""

    name: str
    """The weight's, and the piece's number."""
    weight: Tensor
    start: int
    numbers: Tensor
    """A flat view of the weight; of a small one a float32 copy."""
    copied: bool
    state: dict[str, Tensor] = field(default_factory=dict)
    """step, exp_avg and exp_avg_sq, as torchao's arithmetic wants them; empty before the first step."""

    @property
    def gradient(self) -> Tensor | None:
        """The numbers' own."""
        whole = self.weight.grad
        return None if whole is None else whole.reshape(-1)[self.start : self.start + len(self.numbers)]

    def begin(self) -> None:
        """Moments of zero."""
        from torchao.optim.subclass_8bit import OptimState8bit

        n = self.numbers
        self.state["step"] = torch.tensor(0.0)
        for key, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            self.state[key] = (
                torch.zeros_like(n)
                if self.copied
                else OptimState8bit.zeros(n.shape, signed, BLOCK, n.device, dtype=n.dtype)
            )


class AdamW8bit:
    """torchao's."""

    def __init__(self, weights: Mapping[str, Tensor], config: UpdateConfig) -> None:
        self.config = config
        self.pieces = [piece for name, w in weights.items() for piece in _pieces(name, w)]

    @torch.no_grad()
    def step(self, rate: float, seed: int) -> None:
        """See `Optimizer`."""
        device = self.pieces[0].numbers.device
        cards = [device] if device.type in ("cuda", "xpu") else []
        with torch.random.fork_rng(cards, device_type=device.type if cards else "cuda"):
            torch.manual_seed(seed)
            for piece in self.pieces:
                self._move(piece, rate)

    def _move(self, piece: _Piece, rate: float) -> None:
        from torchao.optim.adam import single_param_adam

        gradient = piece.gradient
        if gradient is None:
            return
        if not piece.state:
            piece.begin()
        state, numbers = piece.state, piece.numbers
        state["step"] += 1
        single_param_adam(
            numbers,
            gradient,
            state["step"],
            state["exp_avg"],
            state["exp_avg_sq"],
            None,
            rate,
            *self.config.betas,
            self.config.weight_decay,
            EPSILON,
            IS_ADAMW=True,
            BF16_STOCHASTIC_ROUND=numbers.dtype == torch.bfloat16,
        )
        if piece.copied:
            piece.weight.view(-1).copy_(numbers)

    def state_dict(self) -> dict[str, Tensor]:
        """See `Optimizer`."""
        found = {f"finer/{piece.name}": piece.numbers for piece in self.pieces if piece.copied}
        for piece in self.pieces:
            for key, held in piece.state.items():
                found |= {f"{key}{part}/{piece.name}": t for part, t in _parts(held)}
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        for piece in self.pieces:
            if piece.copied:
                piece.numbers.copy_(state[f"finer/{piece.name}"])
            if f"step/{piece.name}" not in state:
                continue
            piece.begin()
            for key, held in piece.state.items():
                for part, t in _parts(held):
                    t.copy_(state[f"{key}{part}/{piece.name}"])

    def reset(self) -> None:
        """See `Optimizer`."""
        for piece in self.pieces:
            piece.state.clear()


def _pieces(name: str, weight: Tensor) -> Iterator[_Piece]:
    flat = weight.detach().view(-1)
    if is_small(len(flat)):
        yield _Piece(f"{name}/0", weight, 0, flat.float().clone(), copied=True)
        return
    start = 0
    for i, size in enumerate(piece_sizes(len(flat))):
        yield _Piece(f"{name}/{i}", weight, start, flat[start : start + size], copied=False)
        start += size


def is_small(numbers: int) -> bool:
    """Whether a tensor of so many numbers keeps float32 moments: torchao takes whole blocks alone."""
    return numbers < SMALL or numbers % BLOCK != 0


def piece_sizes(numbers: int) -> list[int]:
    """A large tensor's numbers in about equal pieces of whole blocks."""
    blocks, pieces = numbers // BLOCK, ceil(numbers / PIECE)
    return [BLOCK * (blocks * (i + 1) // pieces - blocks * i // pieces) for i in range(pieces)]


def optimizer_state_bytes(state: str, sizes: Sequence[int], item: int) -> tuple[int, int]:
    """What the optimizer of tensors with so many numbers holds, as (moments and counts, finer copies).

    `item` is the bytes of a number of the policy. Counted as above; a test compares it with the tensors.
    """
    if state != "8-bit":
        number = 4 if state == "32-bit" else item
        return sum(2 * number * n + 4 for n in sizes), 4 * sum(sizes) if number > item else 0
    small = sum(n for n in sizes if is_small(n))
    moments = sum(
        8 * n + 4 if is_small(n) else sum(2 * (p + 4 * p // BLOCK + MAP) + 4 for p in piece_sizes(n))
        for n in sizes
    )
    return moments, 4 * small


def _parts(held: Tensor) -> list[tuple[str, Tensor]]:
    """A moment's own tensors, by the ending of their names."""
    codes: Any = getattr(held, "codes", None)
    return [("", held)] if codes is None else [(".codes", codes), (".scale", held.scale)]  # type: ignore[attr-defined]
