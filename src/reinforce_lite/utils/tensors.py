"""Tensors by name: which hold a value that is not finite, a hash of them, and writing them to a file."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}
"""Names in safetensors files, in the order in which such a file has them."""
HASHED = 1000
"""Numbers of each tensor that its hash depends on: training changes some of them."""
PIECE_BYTES = 64 * 2**20
"""Of a tensor on a GPU, how much is copied to the host at a time."""


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinity. All are on one device.

    A sum is finite only if all its terms are, and takes one pass without a temporary, a tenth of the time of
    `isfinite`. Sums that are not finite are looked at again: they may have overflowed.
    """
    sums = torch.stack([tensor.detach().sum().float() for tensor in tensors.values()]).tolist()  # read once
    suspects = [name for name, total in zip(tensors, sums, strict=True) if not math.isfinite(total)]
    return [name for name in suspects if not bool(tensors[name].isfinite().all())]


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A SHA-256 of the names, the shapes and the first numbers of these tensors."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        first = tensor.detach().flatten()[:HASHED].contiguous().view(torch.uint8).cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + first.numpy().tobytes())
    return digest.hexdigest()


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file (https://huggingface.co/docs/safetensors), a piece in host memory at a time.

    safetensors' own `save_file` copies all tensors of a GPU first: 12 to 37 GB for a 3B model's checkpoint.
    The bytes are the same. Only for the dtypes in DTYPES.
    """
    names = sorted(tensors, key=lambda name: (list(DTYPES).index(tensors[name].dtype), name))
    header, end = {}, 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        shape, dtype = list(tensor.shape), DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = tensors[name].detach().reshape(-1)
            for piece in torch.split(flat, PIECE_BYTES // flat.itemsize):
                opened.write(piece.cpu().view(torch.uint8).numpy().data)
