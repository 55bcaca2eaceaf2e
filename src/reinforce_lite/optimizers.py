"""AdamW (Loshchilov and Hutter 2019), with its two moments in 32, 16 or 8 bits.

    32-bit  float32 weights and moments; behind a bfloat16 policy these are finer copies, its masters
    16-bit  bfloat16 weights and moments, as the first implementation had them: at a rate of 1e-6 most
            updates are smaller than half of what bfloat16 can tell apart, and are lost
    8-bit   the policy's own weights; moments of 8 bits with a scale for each 256 (Dettmers et al. 2022).
            bfloat16 weights are rounded up or down at random, so that updates are right on average

The arithmetic is torch's and torchao's. torchao would compile it; here it runs as it is, on pieces of
large tensors, so that it needs no compiler and little memory. What is too small to be worth 8 bits
(gains and biases) stays in float32, moments and weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from reinforce_lite import config
from reinforce_lite.errors import UsageError

BLOCK = 256
"""Numbers that share a scale."""
SMALL = 4096
"""Tensors with fewer numbers stay in float32."""
PIECE = 2**20
"""Numbers of a large tensor that are moved at once."""
MAP = 1024
"""Bytes of the table that says what each of 256 codes stands for, float32, one for each moment."""
PER_NUMBER = 60
"""Bytes that torchao's arithmetic holds for each number of a piece; measured by benchmarks/memory.py."""


class Optimizer(Protocol):
    """Moves weights by the gradients that are left with them."""

    def step(self, rate: float, seed: int) -> None:
        """One update at a learning rate; `seed` is that of its random rounding."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The moments and the count of steps, as flat named tensors; empty before the first step."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...

    def forget(self) -> None:
        """Back to how it was before the first step."""
        ...


def make(section: config.Update, weights: Mapping[str, Tensor]) -> Optimizer:
    """The optimizer of some weights, by name. Raises UsageError when its package is missing."""
    check(section)
    return AdamW8bit(weights, section) if section.state == "8-bit" else AdamW(weights, section)


def check(section: config.Update) -> None:
    """Raises UsageError when the package that the optimizer's state needs is missing."""
    if section.state == "8-bit" and find_spec("torchao") is None:
        raise UsageError("update.state 8-bit needs torchao", 'pip install "reinforce-lite[8bit]"')


class AdamW:
    """torch's, in the dtype of the weights."""

    def __init__(self, weights: Mapping[str, Tensor], section: config.Update) -> None:
        self.weights = weights
        self.fused = next(iter(weights.values())).device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            list(weights.values()),
            lr=section.learning_rate,
            betas=section.betas,
            weight_decay=section.weight_decay,
            fused=self.fused,
        )

    def step(self, rate: float, seed: int) -> None:
        """See `Optimizer`; nothing is random here."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """See `Optimizer`."""
        held = self.optimizer.state
        return {f"{key}/{name}": t for name, w in self.weights.items() for key, t in held.get(w, {}).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        for name, weight in self.weights.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{key}/{name}" in state:  # a fused AdamW counts its steps on the device
                    place = "cpu" if key == "step" and not self.fused else weight.device
                    self.optimizer.state[weight][key] = state[f"{key}/{name}"].to(place)

    def forget(self) -> None:
        """See `Optimizer`."""
        self.optimizer.state.clear()


@dataclass(slots=True)
class _Piece:
    """Some of a weight's numbers in a row, as the optimizer knows them."""

    name: str
    """The weight's, and the piece's number."""
    weight: Tensor
    start: int
    moved: Tensor
    """A flat view of the weight; of a small one a float32 copy."""

    @property
    def copied(self) -> bool:
        return self.moved.data_ptr() != self.weight.data_ptr() + self.start * self.weight.itemsize

    def take_gradient(self) -> None:
        gradient = self.weight.grad
        assert gradient is not None
        some = gradient.reshape(-1)[self.start : self.start + self.moved.numel()]
        self.moved.grad = some.to(self.moved.dtype)

    def give_back(self) -> None:
        self.moved.grad = None
        if self.copied:
            self.weight.view(-1).copy_(self.moved)


class AdamW8bit:
    """torchao's."""

    def __init__(self, weights: Mapping[str, Tensor], section: config.Update) -> None:
        from torchao.optim import AdamW8bit as Torchao

        self.pieces = [piece for name, w in weights.items() for piece in _pieces(name, w)]
        self.optimizer = Torchao(
            [p.moved for p in self.pieces],
            lr=section.learning_rate,
            betas=section.betas,
            weight_decay=section.weight_decay,
            block_size=BLOCK,
            bf16_stochastic_round=True,
        )

    @torch.no_grad()
    def step(self, rate: float, seed: int) -> None:
        """See `Optimizer`."""
        device = self.pieces[0].moved.device
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)
        for piece in self.pieces:
            piece.take_gradient()
        cards = [device] if device.type in ("cuda", "xpu") else []
        kind = device.type if cards else "cuda"
        with torch.random.fork_rng(cards, device_type=kind), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(seed)
            self.optimizer.step()
        for piece in self.pieces:
            piece.give_back()

    def state(self) -> dict[str, Tensor]:
        """See `Optimizer`."""
        found: dict[str, Tensor] = {}
        for piece in self.pieces:
            for key, held in self.optimizer.state.get(piece.moved, {}).items():
                found |= {f"{key}{part}/{piece.name}": t for part, t in _parts(held)}
            if piece.copied:
                found[f"finer/{piece.name}"] = piece.moved
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        for piece in self.pieces:
            if piece.copied:
                piece.moved.copy_(state[f"finer/{piece.name}"])
            if f"step/{piece.name}" not in state:
                continue
            held = {
                "step": torch.tensor(0.0),
                "exp_avg": self.optimizer._new_buffer(piece.moved, True),
                "exp_avg_sq": self.optimizer._new_buffer(piece.moved, False),
            }
            for key, tensor in held.items():
                for part, t in _parts(tensor):
                    t.copy_(state[f"{key}{part}/{piece.name}"])
            self.optimizer.state[piece.moved] = held

    def forget(self) -> None:
        """See `Optimizer`."""
        self.optimizer.state.clear()


def _pieces(name: str, weight: Tensor) -> Iterator[_Piece]:
    if is_small(weight.numel()):
        yield _Piece(f"{name}/0", weight, 0, weight.detach().flatten().float().clone())
        return
    start = 0
    for i, size in enumerate(piece_sizes(weight.numel())):
        yield _Piece(f"{name}/{i}", weight, start, weight.detach().view(-1)[start : start + size])
        start += size


def is_small(numbers: int) -> bool:
    """Whether a tensor of so many numbers keeps float32 moments: torchao takes whole blocks alone."""
    return numbers < SMALL or numbers % BLOCK != 0


def piece_sizes(numbers: int) -> list[int]:
    """A large tensor's numbers in about equal pieces of whole blocks."""
    blocks, pieces = numbers // BLOCK, ceil(numbers / PIECE)
    return [BLOCK * (blocks * (i + 1) // pieces - blocks * i // pieces) for i in range(pieces)]


def state_bytes(state: str, sizes: Sequence[int], item: int) -> tuple[int, int]:
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
