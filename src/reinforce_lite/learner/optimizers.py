"""AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) with state of 32, 16 or 8 bits.

    32-bit  float32 moments and weights; the weights of a bfloat16 policy are its float32 master weights
    16-bit  moments and weights in the policy's dtype; bfloat16 as in the article's code. In bfloat16, at a
            learning rate of 1e-6, most updates are below half of the resolution, and are lost
    8-bit   the policy's own weights, and 8-bit moments with one scale per block of 256 (Dettmers et al.
            2022, https://arxiv.org/abs/2110.02861). bfloat16 weights are rounded stochastically, so that
            updates are right on average

The arithmetic is torch's and torchao's. torchao's own optimizer compiles it; here it runs eagerly on pieces
of large tensors, which needs no compiler and little memory. Tensors too small for 8 bits (norm weights and
biases) have float32 moments and float32 master weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import ceil
from typing import Any

import torch
from torch import Tensor

from reinforce_lite.config import UpdateConfig
from reinforce_lite.errors import missing_extra
from reinforce_lite.utils.rng import isolated_rng

BLOCK = 256
"""Elements that share a scale."""
SMALL = 4096
"""Tensors with fewer elements stay in float32."""
PIECE = 2**20
"""Upper limit of elements of a large tensor that are updated at a time."""
QMAP_BYTES = 1024
"""The table of the 256 values that an 8-bit code stands for, float32; one per moment and piece."""
WORKSPACE_BYTES_PER_ELEMENT = 150
"""Bytes that torchao's arithmetic needs for each element of a piece; measured by benchmarks/memory.py."""
EPSILON = 1e-8
"""AdamW's epsilon, added to the square root of the second moment."""


def make_optimizer(config: UpdateConfig, weights: Mapping[str, Tensor]) -> "AdamW | AdamW8bit":
    """The optimizer that `config` asks for. Raises UsageError when its package is missing."""
    check_optimizer(config)
    return AdamW8bit(weights, config) if config.optimizer_state == "8-bit" else AdamW(weights, config)


def check_optimizer(config: UpdateConfig) -> None:
    """Raises UsageError when the package that the optimizer state needs is missing."""
    if config.optimizer_state == "8-bit" and find_spec("torchao") is None:
        raise missing_extra("8bit", "update.optimizer_state = 8-bit")


class AdamW:
    """torch's fused AdamW, with moments in the dtype of the weights."""

    def __init__(self, weights: Mapping[str, Tensor], config: UpdateConfig) -> None:
        self.weights = weights
        self.optimizer = torch.optim.AdamW(
            list(weights.values()),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self, learning_rate: float, seed: int) -> None:
        """Update the weights by their `grad`; `seed` is not used, since nothing is random."""
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts as flat named tensors; empty before the first step."""
        state = self.optimizer.state
        return {f"{key}/{name}": t for name, w in self.weights.items() for key, t in state.get(w, {}).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        for name, weight in self.weights.items():
            if f"step/{name}" in state:
                # The step count moves too: a fused AdamW counts on the device.
                self.optimizer.state[weight] = {
                    key: state[f"{key}/{name}"].to(weight.device) for key in ("step", "exp_avg", "exp_avg_sq")
                }


@dataclass(slots=True)
class _Piece:
    """A contiguous part of a weight, with its moments."""

    name: str
    """The weight's name and the piece's index."""
    weight: Tensor
    part: slice
    """Of the flattened weight."""
    elements: Tensor
    """(n,) what the optimizer updates: a view of the weight, or its float32 master copy."""
    is_master: bool
    """Whether `elements` is a float32 copy of the whole, small weight."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """step, exp_avg and exp_avg_sq, as torchao's arithmetic takes them; empty before the first step."""

    def allocate_state(self) -> None:
        """Create moments of zero."""
        from torchao.optim.subclass_8bit import OptimState8bit

        x = self.elements
        self.state["step"] = torch.tensor(0.0)
        for key, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            self.state[key] = (
                torch.zeros_like(x)
                if self.is_master
                else OptimState8bit.zeros(x.shape, signed, BLOCK, x.device, dtype=x.dtype)
            )

    def tensors(self) -> dict[str, Tensor]:
        """Moments, step count and master copy, by the names under which they are saved."""
        tensors = {f"master/{self.name}": self.elements} if self.is_master else {}
        for key, value in self.state.items():
            tensors |= {f"{key}{suffix}/{self.name}": t for suffix, t in _plain_tensors(value)}
        return tensors


class AdamW8bit:
    """torchao's AdamW with 8-bit moments, piece by piece."""

    def __init__(self, weights: Mapping[str, Tensor], config: UpdateConfig) -> None:
        self.config = config
        self.pieces = [piece for name, w in weights.items() for piece in _split_weight(name, w)]

    @torch.no_grad()
    def step(self, learning_rate: float, seed: int) -> None:
        """One update; `seed` is that of the stochastic rounding."""
        with isolated_rng(self.pieces[0].elements.device, seed):
            for piece in self.pieces:
                self._update(piece, learning_rate)

    def _update(self, piece: _Piece, learning_rate: float) -> None:
        from torchao.optim.adam import single_param_adam

        if piece.weight.grad is None:
            return
        if not piece.state:
            piece.allocate_state()
        state, elements = piece.state, piece.elements
        state["step"] += 1
        single_param_adam(
            elements,
            piece.weight.grad.reshape(-1)[piece.part],
            state["step"],
            state["exp_avg"],
            state["exp_avg_sq"],
            None,
            learning_rate,
            *self.config.betas,
            self.config.weight_decay,
            EPSILON,
            IS_ADAMW=True,
            BF16_STOCHASTIC_ROUND=elements.dtype == torch.bfloat16,
        )
        if piece.is_master:
            piece.weight.view(-1).copy_(elements)

    def state_dict(self) -> dict[str, Tensor]:
        """As that of `AdamW`, with the master weights that the optimizer itself makes."""
        return {name: t for piece in self.pieces for name, t in piece.tensors().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        for piece in self.pieces:
            if f"step/{piece.name}" in state:
                piece.allocate_state()
            for name, t in piece.tensors().items():
                t.copy_(state[name])


def _split_weight(name: str, weight: Tensor) -> Iterator[_Piece]:
    flat = weight.detach().view(-1)
    if is_small(len(flat)):
        yield _Piece(f"{name}/0", weight, slice(None), flat.float().clone(), is_master=True)
        return
    start = 0
    for i, size in enumerate(piece_sizes(len(flat))):
        part = slice(start, start + size)
        yield _Piece(f"{name}/{i}", weight, part, flat[part], is_master=False)
        start += size


def is_small(elements: int) -> bool:
    """Whether a tensor with this many elements stays in float32: torchao takes whole blocks only."""
    return elements < SMALL or elements % BLOCK != 0


def piece_sizes(elements: int) -> list[int]:
    """Split a large tensor into pieces of whole blocks and nearly equal size, at most PIECE elements each."""
    blocks, pieces = elements // BLOCK, ceil(elements / PIECE)
    return [BLOCK * (blocks * (i + 1) // pieces - blocks * i // pieces) for i in range(pieces)]


def optimizer_state_bytes(state: str, sizes: Sequence[int], itemsize: int) -> tuple[int, int]:
    """Bytes of (moments and step counts, master weights) for tensors with `sizes` elements.

    `itemsize` is that of the policy's dtype, in bytes. A test compares the result with the real tensors.
    """
    if state != "8-bit":
        moment = 4 if state == "32-bit" else itemsize
        return sum(2 * moment * n + 4 for n in sizes), 4 * sum(sizes) if moment > itemsize else 0
    moments = sum(
        8 * n + 4 if is_small(n) else sum(2 * (p + 4 * p // BLOCK + QMAP_BYTES) + 4 for p in piece_sizes(n))
        for n in sizes
    )
    return moments, 4 * sum(n for n in sizes if is_small(n))


def _plain_tensors(value: Tensor) -> list[tuple[str, Tensor]]:
    """(suffix of the name, tensor): the codes and scales of an 8-bit moment, or the plain tensor itself."""
    codes: Any = getattr(value, "codes", None)
    return [("", value)] if codes is None else [(".codes", codes), (".scale", value.scale)]  # type: ignore[attr-defined]
