"""A static KV cache: a fixed number of sequences, at addresses that never change, as a CUDA graph needs.

A sequence attends to its own tokens and to its prompt. Prompts lie in slots, the prefix that they share in
front of each, and a sequence may use any slot, since where it starts is read from a tensor.

Attention is one kernel of our own where that can be used (`decode_kernel.py`), else one call of
variable-length attention whose two halves are merged. For the latter the query heads that share a key-value
head are M queries of that head, so that its keys are read once.

Shapes: R sequences, W tokens of each, B prompt slots of P tokens; Q query heads, K key-value heads, D head
size, M = Q / K; N tokens of several prompts, S of the prefix.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reinforce_lite.engines import decode_kernel
from reinforce_lite.models import elementwise
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.varlen import Segments, attend
from reinforce_lite.utils.memory import is_out_of_memory
from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What a static batch has room for."""

    rows: int
    """Sequences decoded concurrently (R)."""
    width: int
    """Tokens of each, without its prompt (W)."""
    prompts: int
    """Prompts in the cache (B)."""
    prompt_width: int
    """Tokens of each, with the prefix (P)."""


class StaticCache:
    """`attend` is what `Llama` calls in a decoding step."""

    def __init__(self, llama: Llama, size: BatchSize, dtype: torch.dtype) -> None:
        self.llama, self.size, self.rows = llama, size, size.rows
        self.heads = (llama.kv_heads, llama.query_heads // llama.kv_heads, llama.head_size)
        k, m, d = self.heads
        r, device = size.rows, llama.device
        self.first_slot = r * size.width
        """Where the slots start, behind the sequences' own tokens."""
        tokens = self.first_slot + size.prompts * size.prompt_width
        # Zeros, since an idle row attends to keys that may never have been written.
        self.kv = torch.zeros(len(llama.layers), tokens, 2, k, d, dtype=dtype, device=device)
        self.first = torch.arange(0, self.first_slot, size.width, device=device)
        """(R,) where each sequence's tokens start."""
        self.write_at = self.first.clone()
        """(R,) where each sequence's next token is written."""
        self.key_starts = torch.zeros(2 * r + 1, dtype=torch.int32, device=device)
        self.key_starts[:r] = self.first
        """(2R + 1,) where each sequence's own keys start, then those of its prompt; the last is not used."""
        self.used_keys = torch.ones(2 * r, dtype=torch.int32, device=device)
        """(2R,) how many there are: a sequence's own keys, then its prompt with the prefix."""
        query_starts = torch.arange(0, 2 * r * m + 1, m, dtype=torch.int32, device=device)
        longest = max(size.width, size.prompt_width)
        self.segments = Segments(query_starts, self.key_starts, m, longest, self.used_keys)
        self.has_kernel = decode_kernel.supports(self.kv, m) and self._try_kernel()

    @property
    def prompt_lengths(self) -> Tensor:
        """(R,) tokens of each sequence's prompt, with the prefix."""
        return self.used_keys[self.rows :]

    def slot_start(self, slot: int) -> int:
        """Where a slot starts."""
        return self.first_slot + slot * self.size.prompt_width

    def assign(self, rows: Tensor, starts: Tensor, lengths: Tensor) -> None:
        """Let rows attend to the prompts that start there and have these lengths."""
        self.key_starts[self.rows :].index_copy_(0, rows, starts.int())
        self.prompt_lengths.index_copy_(0, rows, lengths.int())

    def next_places(self, lengths: Tensor, idle: Tensor) -> Tensor:
        """Start a step in which (R,) `lengths` include the new token; returns its (R,) offsets.

        An idle row writes to its last offset, and attends to one token.
        """
        places = (lengths - 1).masked_fill_(idle, self.size.width - 1)
        torch.add(self.first, places, out=self.write_at)
        self.used_keys[: self.rows] = lengths.masked_fill(idle, 1)
        return places

    def write_prefix(self, prefix: Sequence[Tensor]) -> None:
        """Write each layer's (S, 2K x D) keys and values of the prefix to the start of every slot."""
        shape = (self.size.prompts, self.size.prompt_width, *self.kv.shape[2:])
        for layer, kv in zip(self.kv, prefix, strict=True):
            layer[self.first_slot :].view(shape)[:, : len(kv)] = kv.view(len(kv), *shape[2:])

    def write(self, places: Tensor, layer: int, kv: Tensor) -> None:
        """Write one layer's (N, 2K x D) keys and values to (N,) indices of the cache."""
        self.kv[layer].index_copy_(0, places, kv.view(len(kv), *self.kv.shape[2:]))

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """(R, (Q + 2K) x D) of one new token per sequence to (R, Q x D)."""
        if self.has_kernel:
            return self._attend_by_kernel(layer, qkv)
        (k, m, d), r = self.heads, len(qkv)
        self.write(self.write_at, layer, qkv[:, self.llama.key_start :])
        by_head = qkv[:, : self.llama.key_start].view(r, k, m, d).transpose(1, 2)
        q = by_head.expand(2, r, m, k, d).reshape(2 * r * m, k, d)
        keys, values = self.kv[layer].unbind(1)
        merge = elementwise.compile_for_card(_merge_halves) if q.is_cuda else _merge_halves
        return merge(*attend(q, keys, values, self.segments, self.llama.scale), m)

    def _attend_by_kernel(self, layer: int, qkv: Tensor) -> Tensor:
        indices = (self.write_at, self.key_starts, self.used_keys)
        return decode_kernel.attend_to_cache(qkv, self.kv[layer], *indices, self.llama.scale)

    def _try_kernel(self) -> bool:
        """Whether the kernel can be compiled here, which takes a C compiler."""
        width = self.llama.key_start + 2 * self.llama.kv_heads * self.llama.head_size
        try:
            self._attend_by_kernel(0, self.kv.new_zeros(self.rows, width))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            logger.warning("decoding without our attention kernel: %s", one_line_error(error))
            return False
        return True


def _merge_halves(out: Tensor, lse: Tensor, m: int) -> Tensor:
    """(2R x M, K, D) attention to own tokens and to prompts, and its log-sum-exps, to (R, Q x D)."""
    (own, prompt), (own_lse, prompt_lse) = out.chunk(2), lse.chunk(2)
    share = torch.sigmoid(prompt_lse - own_lse)[..., None]
    merged = torch.lerp(own.to(share.dtype), prompt.to(share.dtype), share).to(out.dtype)
    return merged.view(-1, m, *merged.shape[1:]).transpose(1, 2).flatten(1)
