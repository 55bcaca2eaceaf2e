"""Functions of single elements or rows, each one kernel on a CUDA device.

A chain of small operations takes a launch and a pass over memory each, which on a card costs as much as the
matrix products around it. There the chains below are compiled, or are a fused operation of torch's. Where no
compiler is found they run operation by operation; elsewhere they always do.

Shapes: N tokens, H hidden size, I inner size, Q query heads, D head size.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reinforce_lite.models.llama_families import Activation
from reinforce_lite.utils.memory import is_out_of_memory

logger = logging.getLogger(__name__)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """gain x / sqrt(mean(x^2) + eps) of (..., H) (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467).

    Rounded where transformers rounds; on CUDA rounded once.
    """
    if x.is_cuda and not torch.is_grad_enabled():  # for a decoding step's few rows torch's own is slower
        normed: Tensor = compile_for_card(_rms_norm)(x, gain, eps)
        return normed
    return rms_norm_and_inverse(x, gain, eps)[0]


def _rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = (precise.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (precise * inverse * gain).to(x.dtype)


def rms_norm_and_inverse(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm`, and the (..., 1) 1 / sqrt(mean(x^2) + eps) in at least float32."""
    if x.is_cuda:
        precise = x.to(gain.dtype)
        normed, inverse = torch.ops.aten._fused_rms_norm(precise, gain.shape, gain, eps)
        return normed.to(x.dtype), inverse
    inverse = inverse_rms(x, eps)
    return scale_rows(x, inverse, gain), inverse


def rms_norm_backward(
    d: Tensor, x: Tensor, inverse: Tensor, gain: Tensor, needs_gain: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and gain on CUDA, from that of their `rms_norm` and the inverse that it returned."""
    mask, inputs = [True, needs_gain], (d.to(gain.dtype), x.to(gain.dtype))
    d_x, d_gain = torch.ops.aten._fused_rms_norm_backward(*inputs, gain.shape, inverse, gain, mask)
    return d_x.to(x.dtype), d_gain if needs_gain else None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., 1): 1 / sqrt(mean(x^2) + eps) of (..., H), in at least float32."""
    norm: Tensor = torch.linalg.vector_norm(
        x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def scale_rows(x: Tensor, factors: Tensor, gain: Tensor) -> Tensor:
    """gain (factors x), for (..., H) x and (..., 1) factors, rounded to the gain's dtype in between."""
    return (x * factors).to(gain.dtype).mul_(gain).to(x.dtype)


def swiglu(gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up of (N, 2I) gate and up (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
    return (compile_for_card(_swiglu) if gate_up.is_cuda else _swiglu)(gate_up, activation.forward)


def _swiglu(gate_up: Tensor, forward: Callable[..., Tensor]) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return forward(gate).mul_(up)


def swiglu_backward(d: Tensor, gate_up: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """The (N, 2I) gradient of gate and up from that of their `swiglu`, which is returned too.

    `d` may be overwritten.
    """
    if gate_up.is_cuda:
        compiled = compile_for_card(_swiglu_backward)
        d_gate_up, product = compiled(d, gate_up, activation.forward, activation.backward)
        return d_gate_up, product
    gate, up = gate_up.chunk(2, dim=-1)
    inner = activation.forward(gate)  # (N, I)
    d_gate_up = torch.empty_like(gate_up)
    d_gate, d_up = d_gate_up.chunk(2, dim=-1)
    torch.mul(d, inner, out=d_up)
    activation.backward(d.mul_(up), gate, grad_input=d_gate)
    return d_gate_up, inner.mul_(up)


def _swiglu_backward(
    d: Tensor, gate_up: Tensor, forward: Callable[..., Tensor], backward: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.chunk(2, dim=-1)
    inner = forward(gate)
    return torch.cat([backward(d * up, gate), d * inner], dim=-1), inner * up


def rotate(flat: Tensor, cos: Tensor, sin: Tensor, heads: int, head_size: int) -> Tensor:
    """Rotate the first `heads` of the D-wide heads of each token by the (N, rotated part of D) angles.

    A head's first half a and second half b become a cos - b sin and b cos + a sin (Su et al. 2021,
    https://arxiv.org/abs/2104.09864). The halves of `cos` are equal, and those of `sin`. Returns a new tensor
    on CUDA, elsewhere `flat` itself.
    """
    if flat.is_cuda:
        rotated: Tensor = compile_for_card(_rotate_copy)(flat, cos, sin, heads, head_size)
        return rotated
    return rotate_in_place(flat, cos, sin, heads, head_size)


def rotate_in_place(flat: Tensor, cos: Tensor, sin: Tensor, heads: int, head_size: int) -> Tensor:
    """`rotate`, which returns `flat` itself on every device."""
    half = cos.shape[-1] // 2
    view = flat.view(len(flat), -1, head_size)[:, :heads]
    a, b = view[..., :half], view[..., half : 2 * half]
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    rotated_a = a * cos - b * sin
    b.mul_(cos).addcmul_(a, sin)
    a.copy_(rotated_a)
    return flat


def _rotate_copy(flat: Tensor, cos: Tensor, sin: Tensor, heads: int, head_size: int) -> Tensor:
    half = cos.shape[-1] // 2
    view = flat.view(len(flat), -1, head_size)
    a, b, rest = torch.tensor_split(view[:, :heads], [half, 2 * half], dim=2)
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    rotated = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=2)
    return torch.cat([rotated, view[:, heads:]], dim=1).flatten(1)


def merge(*parts: Tensor) -> Tensor:
    """Attention to several sets of keys, (N, Q, D), from the output and (N, Q) log-sum-exp for each in turn.

    The sum over the sets of exp(lse - total) out, where exp(total) is the sum of exp(lse).
    """
    return (compile_for_card(_merge) if parts[0].is_cuda else _merge)(*parts)


def _merge(*parts: Tensor) -> Tensor:
    merged, total = parts[0].to(parts[1].dtype), parts[1]
    for out, lse in zip(parts[2::2], parts[3::2], strict=True):
        merged = torch.lerp(merged, out.to(lse.dtype), torch.sigmoid(lse - total)[..., None])
        total = torch.logaddexp(total, lse)
    return merged.to(parts[0].dtype).contiguous()  # not transposed, as log-sum-exps may be


@cache
def compile_for_card(function: Callable[..., Any]) -> "CompiledFunction":
    """`function` as one kernel or a few. Where it can't be compiled it runs as it is, which is logged."""
    return CompiledFunction(function)


class CompiledFunction:
    """A function of tensors, compiled once for all lengths of their first dimension."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.run = function, torch.compile(function)

    @property
    def is_compiled(self) -> bool:
        """False once it has failed to compile."""
        return self.run is not self.function

    def __call__(self, *args: Any) -> Any:
        """Call the function. The length of dimension 0 may differ from call to call, but a tensor that shares
        it with the first tensor in one call must share it in every call.
        """
        if not self.is_compiled:
            return self.function(*args)
        # Otherwise it would be compiled once more for tensors that require a gradient, and for each length.
        args = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
        for arg in args:
            if isinstance(arg, Tensor) and arg.shape[:1] == args[0].shape[:1]:
                torch._dynamo.maybe_mark_dynamic(arg, 0)
        try:
            return self.run(*args)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            first_line = next(iter(str(error).splitlines()), "")
            logger.warning("slower without compiled kernels: %s: %s", type(error).__name__, first_line)
            self.run = self.function
            return self.function(*args)
