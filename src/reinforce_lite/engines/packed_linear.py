"""Products for the few rows of a decoding step, on a processor.

oneDNN lays out a weight anew for every product, which for 64 rows takes as long as the product itself.
Here each weight is laid out once, when a batch of answers begins: a second copy of the weights for as
long as that takes, and the numbers are the same. Measured: `benchmarks/rollout.py`, docs/log.md.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

from reinforce_lite.models.llama import Linear, Llama


def make_linear(llama: Llama, rows: int) -> Linear:
    """What does the products of about `rows` rows fastest, for as long as the weights stay as they are."""
    weights = [
        w
        for layer in llama.layers
        for w in (layer.qkv.weight, layer.out.weight, layer.gate_up.weight, layer.down.weight)
    ]
    head = llama.model.get_output_embeddings().weight
    return _Packed([*weights, head], rows) if can_pack(head) else F.linear


def can_pack(weight: Tensor) -> bool:
    """Whether torch has the products that take packed weights, which it makes for its own compiler."""
    ops = torch.ops.mkldnn
    return (
        weight.device.type == "cpu"
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(ops, "_reorder_linear_weight")
        and hasattr(ops, "_linear_pointwise")
        and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _bfloat16()))
    )


def _bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Packed:
    def __init__(self, weights: list[Tensor], rows: int) -> None:
        reorder = torch.ops.mkldnn._reorder_linear_weight
        self.packed = {w.data_ptr(): reorder(w.detach(), rows) for w in weights}
        self.product = torch.ops.mkldnn._linear_pointwise

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made: Tensor = self.product(x, self.packed[weight.data_ptr()], bias, "none", [], "")
        return made
