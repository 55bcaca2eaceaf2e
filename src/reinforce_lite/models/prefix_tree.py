"""The layout of prompts and their completions as one flat batch in which shared prefixes appear once.

A step's sequences form a tree. The root is the prefix that all prompts share (worked examples), a branch is
the rest of one prompt with its completions, each of which is a leaf:

    prefix ─┬─ prompt 1 ─┬─ completion 1.1
            │            └─ completion 1.2
            └─ prompt 2 ─── completion 2.1

All tokens lie in one flat dimension, so norms and matrix products see no padding. Only attention depends on
the tree: a token attends to its own sequence up to itself, to its prompt, and to the prefix
(`prefix_attention.py`).

Shapes: N flat tokens, R sequences of a block, T tokens of the longest of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import torch
from torch import Tensor

from reinforce_lite.models.varlen import Segments

Ids = Sequence[int]
"""Token ids."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A prompt and its completions, if any. In a tree with a prefix, only what follows it."""

    prompt: Ids
    completions: Sequence[Ids] = ()


@dataclass(frozen=True, slots=True)
class SequenceBlock:
    """Sequences of similar length, padded on the right."""

    padded_indices: Tensor
    """(R, T) flat indices of the tokens; padding repeats a sequence's first token."""
    valid: Tensor
    """(R, T) whether it is a token and no padding."""
    cells: Tensor
    """(2, tokens) row and column of each valid one, sequence after sequence."""
    indices: Tensor
    """(tokens,) their flat indices."""

    def gather(self, flat: Tensor) -> Tensor:
        """(N, heads, ...) to (R, heads, T, ...)."""
        return flat[self.padded_indices].transpose(1, 2)

    def scatter(self, padded: Tensor, flat: Tensor) -> None:
        """The inverse of `gather`, without the padding."""
        flat[self.indices] = padded.transpose(1, 2)[*self.cells]


@dataclass(frozen=True, slots=True)
class TreeSegments:
    """What the tokens of a tree attend to, as segments."""

    own: Segments
    """Of each sequence's tokens to themselves, causally."""
    to_prompts: Segments | None
    """Of the tokens from `prompt_tokens` on, the completions, to the tokens before it, the prompts."""
    to_prefix: Segments | None
    """Of all tokens to the prefix."""
    prompt_tokens: int


class PrefixTree:
    """The flat tokens of some branches, their positions, and what they attend to."""

    def __init__(self, branches: Sequence[Branch], start: int, device: torch.device) -> None:
        """`start` is the length of the prefix. A completion's last token is omitted: it predicts nothing."""
        ids: list[Ids] = []
        positions: list[range] = []
        length = 0

        def append(tokens: Ids, position: int) -> range:
            """Append a sequence whose first token is at `position`; returns its flat indices."""
            nonlocal length
            ids.append(tokens)
            positions.append(range(position, position + len(tokens)))
            length += len(tokens)
            return range(length - len(tokens), length)

        prompts = [append(b.prompt, start) for b in branches]
        groups = [[append(c[:-1], start + len(b.prompt)) for c in b.completions] for b in branches]
        self.ids = torch.tensor(list(chain.from_iterable(ids)), device=device)  # (N,)
        self.positions = torch.tensor(list(chain.from_iterable(positions)), device=device)
        """(N,) each token's position in its sequence, counted from the start of the prefix."""
        self.prompts = prompts
        """Each prompt's flat indices."""
        self.sequences = [*prompts, *chain.from_iterable(groups)]
        """The flat indices of all sequences, prompts and completions."""
        self.prefix_length = start
        self.completions = [
            (slice(group[0].start, group[-1].stop), slice(prompt.start, prompt.stop))
            for prompt, group in zip(prompts, groups, strict=True)
            if group and group[0].start < group[-1].stop
        ]
        """For each prompt the flat indices of all its completions, and those of the prompt itself."""
        predictors = [[p[-1:], c] for p, group in zip(prompts, groups, strict=True) for c in group]
        self.predictors = torch.tensor(
            list(chain.from_iterable(chain.from_iterable(predictors))), device=device
        )
        """(tokens of all completions,) the flat index of the state that predicts each of them."""

    @cached_property
    def blocks(self) -> list[SequenceBlock]:
        """All sequences, in blocks of similar length."""
        return _blocks(self.sequences, self.ids.device)

    @cached_property
    def segments(self) -> TreeSegments:
        """The same, without padding; for which the host does not wait."""
        own, prompts = [len(s) for s in self.sequences if s], [len(p) for p in self.prompts]
        groups = {prompt.start: group.stop - group.start for group, prompt in self.completions}
        queries = [groups.get(p.start, 0) for p in self.prompts]
        n, prefix = sum(own), self.prefix_length
        starts = _starts([own, queries, prompts, [n], [prefix]], self.ids.device)
        own_starts, query_starts, prompt_starts, all_starts, prefix_starts = starts
        return TreeSegments(
            Segments(own_starts, own_starts, max(own), max(own)),
            Segments(query_starts, prompt_starts, max(queries), max(prompts)) if groups else None,
            Segments(all_starts, prefix_starts, n, prefix) if prefix else None,
            sum(prompts),
        )


def _starts(lengths: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, ...]:
    """For n segments of each of these lengths their (n + 1,) int32 starts, by one copy to the device."""
    starts = [[0, *accumulate(part)] for part in lengths]
    # From other than pinned memory the copy would wait.
    flat = torch.tensor(
        list(chain.from_iterable(starts)), dtype=torch.int32, pin_memory=device.type == "cuda"
    )
    return torch.split(flat.to(device, non_blocking=True), list(map(len, starts)))


def _blocks(sequences: Sequence[range], device: torch.device) -> list[SequenceBlock]:
    """One block for each bit length of a sequence length, so that at most half of a block is padding."""
    classes = {len(s).bit_length() for s in sequences if s}
    return [_block([s for s in sequences if len(s).bit_length() == c], device) for c in sorted(classes)]


def _block(sequences: Sequence[range], device: torch.device) -> SequenceBlock:
    starts = torch.tensor([[s.start] for s in sequences])
    lengths = torch.tensor([[len(s)] for s in sequences])
    offsets = torch.arange(max(map(len, sequences)))
    valid = offsets < lengths
    padded_indices = starts + offsets * valid
    # On the host: indexing by a mask on a GPU would wait for the number of valid cells.
    cells, indices = valid.nonzero().t(), padded_indices[valid]
    return SequenceBlock(*(x.to(device) for x in (padded_indices, valid, cells, indices)))
