"""Faster matrix products for the few rows of a decoding step, on an x86 CPU.

oneDNN reorders a weight for every product, which for 64 rows takes as long as the product itself. Here
each weight is packed once, when a batch of sequences starts. That costs a second copy of the weights until
the batch is done; the results are the same. Measured by benchmarks/rollout.py, see docs/log.md.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

from reinforce_lite.models.llama import Llama
from reinforce_lite.models.projection import Linear


def make_linear(llama: Llama, rows: int) -> Linear:
    """The fastest linear for inputs of about `rows` rows. Valid until the weights change."""
    head = llama.model.get_output_embeddings().weight
    if not can_pack(head) or llama.layers[0].qkv.is_int8:
        return F.linear
    weights = [head]
    for layer in llama.layers:
        weights += [layer.qkv.weight, layer.out.weight, layer.gate_up.weight, layer.down.weight]
    ops = torch.ops.mkldnn
    packed = {w.data_ptr(): ops._reorder_linear_weight(w.detach(), rows) for w in weights}

    def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output: Tensor = ops._linear_pointwise(x, packed[weight.data_ptr()], bias, "none", [], "")
        return output

    return packed_linear


def can_pack(weight: Tensor) -> bool:
    """Whether torch has products with packed weights here; they are made for torch.compile."""
    ops, dtype = torch.ops.mkldnn, weight.dtype
    return (
        weight.device.type == "cpu"
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(ops, "_reorder_linear_weight")
        and hasattr(ops, "_linear_pointwise")
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported())))
    )
