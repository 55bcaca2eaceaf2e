"""Frozen linear layers in 8 bits, for a base model that an adapter is trained over.

Each output row of a weight W (outputs, inputs) gets a scale s, and W is stored in int8:

    s = max |W| of the row / 127        q = round(W / s)        W is computed as s q

q takes a byte per number, and s q differs from W by at most s / 2 and the rounding of the compute dtype. A
product needs s q for as long as it runs: memory is saved, not time. Engine, update and the modules' own
forward pass all multiply by the same s q.

Omitted on purpose: the embedding and the head, kernels that multiply 8 bits directly, which torch does not
have on CPU and CUDA alike, and a packed copy for decoding on a CPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reinforce_lite.errors import UsageError

STEPS = 127
"""Steps of a row's scale on either side of zero."""


class Int8Linear(nn.Linear):
    """A linear layer that holds q and s. Its state dict has the weight that it computes with."""

    quantized: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        quantized, scale = quantize(linear.weight.detach())
        self.register_buffer("quantized", quantized)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(outputs, inputs): s q, computed anew each time."""
        return dequantize(self.quantized, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return F.linear(x, self.weight, self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight.cpu()  # a card need not hold all of them
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """q, (outputs, inputs) in int8, and s, (outputs, 1) in the weight's dtype.

    W is divided by s as rounded to that dtype, so that this rounding adds no error of its own.
    """
    info = torch.finfo(weight.dtype)
    smallest = info.tiny * info.eps  # above 0, for a row of zeros
    largest = weight.abs().amax(1, keepdim=True).float()  # (outputs, 1)
    scale = (largest / STEPS).clamp_min(smallest).to(weight.dtype)
    quantized = (weight.float() / scale.float()).round_().clamp_(-STEPS, STEPS)
    return quantized.to(torch.int8), scale


def dequantize(quantized: Tensor, scale: Tensor) -> Tensor:
    """s q, (outputs, inputs) in the dtype of s."""
    return quantized * scale


def quantize_linears(model: Any) -> None:
    """Put an `Int8Linear` in place of each linear layer but the head. Raises UsageError if there is none."""
    head = model.get_output_embeddings()
    names = [n for n, m in model.named_modules() if type(m) is nn.Linear and m is not head]
    if not names:
        raise UsageError("the model has no linear layer to hold in 8 bits", "remove model.base_weights")
    for name in names:
        parent, _, attribute = name.rpartition(".")
        module = model.get_submodule(parent)
        setattr(module, attribute, Int8Linear(getattr(module, attribute)))


def quantized_scales(model: Any) -> dict[str, Tensor]:
    """The scales of the layers in 8 bits, by name. A weight that is not finite gives one that is not."""
    return {f"{n}.scale": m.scale for n, m in model.named_modules() if isinstance(m, Int8Linear)}
