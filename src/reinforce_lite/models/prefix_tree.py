"""The layout of prompts and their completions as one flat batch in which shared prefixes appear once.

A step's sequences form a tree. The root is the prefix that all prompts share (worked examples), a branch is
the rest of one prompt, a leaf one completion:

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
from itertools import chain

import torch
from torch import Tensor

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
    indices: Tensor
    """The valid ones of the flat indices, sequence after sequence."""

    def gather(self, flat: Tensor) -> Tensor:
        """(N, heads, ...) to (R, heads, T, ...)."""
        return flat[self.padded_indices].transpose(1, 2)

    def scatter(self, padded: Tensor, flat: Tensor) -> None:
        """The inverse of `gather`, without the padding."""
        flat[self.indices] = padded.transpose(1, 2)[self.valid]


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
        self.blocks = _blocks([*prompts, *chain.from_iterable(groups)], device)
        """All sequences, prompts and completions, in blocks of similar length."""
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


def _blocks(sequences: Sequence[range], device: torch.device) -> list[SequenceBlock]:
    """One block for each bit length of a sequence length, so that at most half of a block is padding."""
    classes = {len(s).bit_length() for s in sequences if s}
    return [_block([s for s in sequences if len(s).bit_length() == c], device) for c in sorted(classes)]


def _block(sequences: Sequence[range], device: torch.device) -> SequenceBlock:
    starts = torch.tensor([s.start for s in sequences], device=device)[:, None]
    lengths = torch.tensor([len(s) for s in sequences], device=device)[:, None]
    offsets = torch.arange(max(map(len, sequences)), device=device)
    valid = offsets < lengths
    padded_indices = starts + offsets * valid
    return SequenceBlock(padded_indices, valid, padded_indices[valid])
