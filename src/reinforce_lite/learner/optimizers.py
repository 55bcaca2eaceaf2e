"""AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) with state of 32, 16 or 8 bits.

    32-bit  float32 moments and weights; the weights of a bfloat16 policy are its float32 master weights
    16-bit  moments and weights in the policy's dtype; bfloat16 as in the article's code. In bfloat16, at a
            learning rate of 1e-6, most updates are below half of the resolution, and are lost
    8-bit   the policy's own weights, and 8-bit moments with one scale per block of 256 (Dettmers et al.
            2022, https://arxiv.org/abs/2110.02861). bfloat16 weights are rounded stochastically, so that
            updates are right on average

The arithmetic is torch's and torchao's. torchao's own optimizer compiles it; here it runs eagerly on pieces
of large tensors, which needs no compiler and little memory. On a CUDA device it is compiled too and updates
whole tensors, unless no compiler is found. Tensors too small for 8 bits (norm weights and biases) have
float32 moments and float32 master weights.

With `update.offload_optimizer` the 8-bit moments stay in the machine's own memory, pinned, and pass through
the card in parts: 2 bytes of each parameter there and back in every step.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from math import ceil
from typing import Any

import torch
from torch import Tensor

from reinforce_lite.config import UpdateConfig
from reinforce_lite.errors import missing_extra
from reinforce_lite.models import elementwise
from reinforce_lite.utils.rng import isolated_rng

BLOCK = 256
"""Elements that share a scale."""
SMALL = 4096
"""Tensors with fewer elements stay in float32."""
PIECE = 2**20
"""Upper limit of elements of a large tensor that are updated at a time."""
QMAP_BYTES = 1024
"""The table of the 256 values that an 8-bit code stands for, float32: one per moment and piece, on a CUDA
device one per moment and weight."""
WORKSPACE_BYTES_PER_ELEMENT = 150
"""Bytes that torchao's arithmetic needs for each element of a piece; measured by benchmarks/memory.py."""
OFFLOADED_BLOCKS = 2**16
"""How many blocks of offloaded moments are on the card at a time: 34 MB of both."""
TRIAL_BLOCKS = 4096
"""Blocks on which the compiled update is tried."""
MOMENTS = (("exp_avg", True), ("exp_avg_sq", False))
"""Their names, and whether they are signed."""
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
        for key, signed in MOMENTS:
            self.state[key] = (
                torch.zeros_like(x)
                if self.is_master
                else OptimState8bit.zeros(x.shape, signed, BLOCK, x.device, dtype=x.dtype)
            )

    def allocate_state_within(self, moments: Mapping[str, Any]) -> None:
        """Use parts of the moments of the whole weight."""
        from torchao.optim.subclass_8bit import OptimState8bit

        blocks = slice(self.part.start // BLOCK, self.part.stop // BLOCK)
        self.state["step"] = torch.tensor(0.0)
        for key, signed in MOMENTS:
            codes, scale, qmap = moments[key].codes[self.part], moments[key].scale[blocks], moments[key].qmap
            self.state[key] = OptimState8bit(codes, scale, qmap, signed, self.elements.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Moments, step count and master copy, by the names under which they are saved."""
        tensors = {f"master/{self.name}": self.elements} if self.is_master else {}
        for key, value in self.state.items():
            tensors |= {f"{key}{suffix}/{self.name}": t for suffix, t in _plain_tensors(value)}
        return tensors


@dataclass(slots=True)
class _Weight:
    """A weight in pieces. On CUDA it has the 8-bit moments as a whole, and its pieces have views of them."""

    weight: Tensor
    pieces: list[_Piece]
    moments: dict[str, Any] = field(default_factory=dict)

    def allocate_state(self, offload: bool) -> None:
        """Create moments of zero, with `offload` in the machine's own memory."""
        from torchao.optim.subclass_8bit import OptimState8bit

        if self.pieces[0].is_master or not self.weight.is_cuda:
            for piece in self.pieces:
                piece.allocate_state()
            return
        flat = self.weight.detach().view(-1)
        device = torch.device("cpu") if offload else flat.device
        for key, signed in MOMENTS:
            moment = OptimState8bit.zeros(flat.shape, signed, BLOCK, device, dtype=flat.dtype)
            if offload:
                moment.codes, moment.scale = moment.codes.pin_memory(), moment.scale.pin_memory()
            self.moments[key] = moment
        for piece in self.pieces:
            piece.allocate_state_within(self.moments)


class AdamW8bit:
    """torchao's AdamW with 8-bit moments, piece by piece or, on a card, weight by weight."""

    def __init__(self, weights: Mapping[str, Tensor], config: UpdateConfig) -> None:
        self.config = config
        self.weights = [_Weight(w, list(_split_weight(name, w))) for name, w in weights.items()]
        self.pieces = [piece for weight in self.weights for piece in weight.pieces]

    @torch.no_grad()
    def step(self, learning_rate: float, seed: int) -> None:
        """One update; `seed` is that of the stochastic rounding."""
        weights = [w for w in self.weights if w.weight.grad is not None]
        for weight in weights:
            if not weight.pieces[0].state:
                weight.allocate_state(self.config.offload_optimizer)
            for piece in weight.pieces:
                piece.state["step"] += 1
        first = self.weights[0].weight
        by_weight = first.is_cuda and _can_compile_update(first.device, first.dtype, *self.config.betas)
        with isolated_rng(first.device, seed):
            if by_weight:
                self._update_on_card(weights, learning_rate)
            else:
                for weight in weights:
                    for piece in weight.pieces:
                        self._update(piece, learning_rate)
            if self.config.offload_optimizer and first.is_cuda:
                torch.cuda.synchronize()  # until then the moments may not be back

    def _update_on_card(self, weights: Sequence[_Weight], learning_rate: float) -> None:
        """The same in a few launches for each large weight, and for all small ones together."""
        by_step = defaultdict[float, list[_Weight]](list)
        for weight in weights:
            by_step[float(weight.pieces[0].state["step"])].append(weight)
        for step, equals in by_step.items():
            first, second = (1 - beta**step for beta in self.config.betas)
            factors = (1 - learning_rate * self.config.weight_decay, learning_rate / first, second**0.5)
            _update_small([w.pieces[0] for w in equals if not w.moments], factors, self.config.betas)
            _update_large([w for w in equals if w.moments], factors, self.config.betas)

    def _update(self, piece: _Piece, learning_rate: float) -> None:
        from torchao.optim.adam import single_param_adam

        assert piece.weight.grad is not None
        elements = piece.elements
        moments: list[Any] = [piece.state[key] for key, _ in MOMENTS]
        is_offloaded = self.config.offload_optimizer and not piece.is_master
        here = [_on_device(m, elements.device) for m in moments] if is_offloaded else moments
        single_param_adam(
            elements,
            piece.weight.grad.reshape(-1)[piece.part],
            piece.state["step"],
            *here,
            None,
            learning_rate,
            *self.config.betas,
            self.config.weight_decay,
            EPSILON,
            IS_ADAMW=True,
            BF16_STOCHASTIC_ROUND=elements.dtype == torch.bfloat16,
        )
        if is_offloaded:
            for moment, updated in zip(moments, here, strict=True):
                moment.codes.copy_(updated.codes)
                moment.scale.copy_(updated.scale)
        if piece.is_master:
            piece.weight.view(-1).copy_(elements)

    def state_dict(self) -> dict[str, Tensor]:
        """As that of `AdamW`, with the master weights that the optimizer itself makes."""
        return {name: t for piece in self.pieces for name, t in piece.tensors().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        for weight in self.weights:
            if f"step/{weight.pieces[0].name}" in state:
                weight.allocate_state(self.config.offload_optimizer)
            for piece in weight.pieces:
                for name, t in piece.tensors().items():
                    t.copy_(state[name])


Factors = tuple[float, float, float]
"""What a weight is multiplied by; the learning rate over the first moment's bias correction; the square root
of the second's."""


def _update_small(pieces: Sequence[_Piece], factors: Factors, betas: tuple[float, float]) -> None:
    """AdamW of float32 moments and master weights, each operation for all of them."""
    if not pieces:
        return
    decay, step_size, root_correction = factors
    weights = [p.elements for p in pieces]
    grads = [p.weight.grad.reshape(-1).float() for p in pieces if p.weight.grad is not None]
    means, squares = ([p.state[key] for p in pieces] for key, _ in MOMENTS)
    torch._foreach_lerp_(means, grads, 1 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, grads, grads, 1 - betas[1])
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, root_correction)
    torch._foreach_add_(roots, EPSILON)
    torch._foreach_mul_(weights, decay)
    torch._foreach_addcdiv_(weights, means, roots, -step_size)
    torch._foreach_copy_([p.weight.view(-1) for p in pieces], weights)


def _update_large(weights: Sequence[_Weight], factors: Factors, betas: tuple[float, float]) -> None:
    """AdamW of 8-bit moments, each weight at a time; where its moments are not on the card, in parts."""
    if not weights:
        return
    update = elementwise.compile_for_card(_update_blocks)
    card = weights[0].weight.device
    on_card = torch.tensor(factors, pin_memory=True).to(card, non_blocking=True)
    tables = [weights[0].moments[key].qmap.to(card) for key, _ in MOMENTS]
    for w in weights:
        assert w.weight.grad is not None
        elements, grad = (t.reshape(-1, BLOCK) for t in (w.weight.detach(), w.weight.grad))
        moments = [
            t for key, _ in MOMENTS for t in (w.moments[key].codes.view(-1, BLOCK), w.moments[key].scale)
        ]
        at_a_time = len(elements) if moments[0].is_cuda else OFFLOADED_BLOCKS
        for start in range(0, len(elements), at_a_time):
            part = slice(start, start + at_a_time)
            held = [t[part] for t in moments]
            here = [t.to(card, non_blocking=True) for t in held]
            update(elements[part], grad[part], *here, *tables, on_card, *betas)
            if not held[0].is_cuda:
                torch._foreach_copy_(held, here, non_blocking=True)
            del here  # before the next part is copied


@cache
def _can_compile_update(device: torch.device, dtype: torch.dtype, *betas: float) -> bool:
    """Whether `_update_blocks` compiles on a card, where the first call chooses a layout of the work too."""
    update = elementwise.compile_for_card(_update_blocks)
    weight, grad = (torch.zeros(TRIAL_BLOCKS, BLOCK, dtype=dtype, device=device) for _ in range(2))
    codes, scales = torch.zeros_like(weight, dtype=torch.uint8), torch.zeros(TRIAL_BLOCKS, device=device)
    moments, table = (codes, scales, codes.clone(), scales.clone()), torch.zeros(BLOCK, device=device)
    with isolated_rng(device, 0):
        update(weight, grad, *moments, table, table.clone(), torch.ones(3, device=device), *betas)
    return update.is_compiled


def _update_blocks(  # noqa: PLR0913, PLR0917 a compiled function takes tensors
    weight: Tensor,
    grad: Tensor,
    mean_codes: Tensor,
    mean_scales: Tensor,
    square_codes: Tensor,
    square_scales: Tensor,
    mean_table: Tensor,
    square_table: Tensor,
    factors: Tensor,
    beta_1: float,
    beta_2: float,
) -> None:
    """AdamW of (blocks, BLOCK) elements with (blocks, BLOCK) codes and (blocks,) scales, in place.

    The arithmetic of torchao's `single_param_adam`, on plain tensors.
    """
    from torchao.optim.quant_utils import _fp32_to_bf16_sr, quantize_8bit_with_qmap

    decay, step_size, root_correction = factors.unbind()
    g = grad.float()
    mean = (mean_table[mean_codes.int()] * mean_scales[:, None]).lerp(g, 1 - beta_1)
    square = (square_table[square_codes.int()] * square_scales[:, None]).lerp(g.square(), 1 - beta_2)
    updated = weight.float() * decay - step_size * mean / (square.sqrt() / root_correction + EPSILON)
    weight.copy_(_fp32_to_bf16_sr(updated) if weight.dtype == torch.bfloat16 else updated)
    for moment, codes, scales, table in (
        (mean, mean_codes, mean_scales, mean_table),
        (square, square_codes, square_scales, square_table),
    ):
        largest = moment.abs().amax(-1).clip(1e-12)
        codes.copy_(quantize_8bit_with_qmap(moment / largest[:, None], table))
        scales.copy_(largest)


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


def _on_device(moment: Any, device: torch.device) -> Any:
    """A copy of an 8-bit moment on another device."""
    from torchao.optim.subclass_8bit import OptimState8bit

    parts = (t.to(device) for t in (moment.codes, moment.scale, moment.qmap))
    return OptimState8bit(*parts, moment.signed, moment.dtype)


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


def saved_state_bytes(state: str, sizes: Sequence[int], itemsize: int) -> int:
    """Bytes of the optimizer's state with the weights that it moves: master weights, or the policy's own."""
    moments, master_weights = optimizer_state_bytes(state, sizes, itemsize)
    has_copies = state == "32-bit" and itemsize < 4
    return moments + master_weights + (0 if has_copies else itemsize * sum(sizes))


def pinned_bytes(sizes: Sequence[int]) -> int:
    """Bytes of offloaded moments of tensors with `sizes` elements.

    torch rounds pinned memory up to a power of two.
    """
    parts = [part for n in sizes if not is_small(n) for part in (n, 4 * n // BLOCK)]
    return 2 * sum(1 << (part - 1).bit_length() for part in parts)


def _plain_tensors(value: Tensor) -> list[tuple[str, Tensor]]:
    """(suffix of the name, tensor): the codes and scales of an 8-bit moment, or the plain tensor itself."""
    codes: Any = getattr(value, "codes", None)
    return [("", value)] if codes is None else [(".codes", codes), (".scale", value.scale)]  # type: ignore[attr-defined]
