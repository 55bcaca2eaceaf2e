"""Faster matrix products for the few rows of a decoding step, on an x86 CPU.

oneDNN reorders a weight for every product, which for 64 rows takes as long as the product itself. Here
each weight is packed once, when a batch of sequences starts. That costs a second copy of the weights until
the batch is done; the results are the same. Measured by benchmarks/rollout.py, see docs/log.md.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

from reinforce_lite.models.llama import Linear, Llama


def make_linear(llama: Llama, rows: int) -> Linear:
    """The fastest linear for inputs of about `rows` rows. Valid until the weights change."""
    weights = [
        w
        for layer in llama.layers
        for w in (layer.qkv.weight, layer.out.weight, layer.gate_up.weight, layer.down.weight)
    ]
    head = llama.model.get_output_embeddings().weight
    return _PackedLinear([*weights, head], rows) if can_pack(head) else F.linear


def can_pack(weight: Tensor) -> bool:
    """Whether torch has products with packed weights here; they are made for torch.compile."""
    ops = torch.ops.mkldnn
    return (
        weight.device.type == "cpu"
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(ops, "_reorder_linear_weight")
        and hasattr(ops, "_linear_pointwise")
        and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _supports_bfloat16()))
    )


def _supports_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _PackedLinear:
    """`F.linear` for a fixed set of weights, looked up by their address."""

    def __init__(self, weights: list[Tensor], rows: int) -> None:
        reorder = torch.ops.mkldnn._reorder_linear_weight
        self.packed = {w.data_ptr(): reorder(w.detach(), rows) for w in weights}
        self.packed_linear = torch.ops.mkldnn._linear_pointwise

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output: Tensor = self.packed_linear(x, self.packed[weight.data_ptr()], bias, "none", [], "")
        return output
