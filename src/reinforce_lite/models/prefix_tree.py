"""Many answers to many questions as one pass: what they begin with is computed once, exactly.

A step's sequences are a tree. The root is what all prompts begin with (worked examples), a branch is
the rest of one prompt, a leaf one completion:

    prefix ─┬─ prompt 1 ─┬─ completion 1.1
            │            └─ completion 1.2
            └─ prompt 2 ─── completion 2.1

All tokens stand in one flat row, so norms and products see no padding. Only attention knows the tree:
a token sees its own sequence up to itself, its prompt, and the prefix. These are parts of one attention
(`attention.py`): what is shared is met by all tokens at once, and never copied.

Shapes: N flat tokens, R sequences of a block with up to T tokens, S tokens of the prefix; Q query heads,
K heads of keys and values, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Branch:
    """A prompt and some completions of it, or none; in a tree, what the prompt has behind the prefix."""

    prompt: Ids
    completions: Sequence[Ids] = ()


@dataclass(frozen=True, slots=True)
class SequenceBlock:
    """Sequences of about the same length, side by side."""

    rows: Tensor
    """(R, T) the flat places of their tokens; padding points at a sequence's first token."""
    real: Tensor
    """(R, T) which are no padding."""
    places: Tensor
    """The flat places of those, sequence after sequence."""

    def gather(self, flat: Tensor) -> Tensor:
        """(N, heads, ...) to (R, heads, T, ...)."""
        return flat[self.rows].transpose(1, 2)

    def scatter(self, heads: Tensor, flat: Tensor) -> None:
        """The inverse of `gather`: padding is left out."""
        flat[self.places] = heads.transpose(1, 2)[self.real]


class PrefixTree:
    """Where each token of some branches stands, and what it attends to."""

    def __init__(self, branches: Sequence[Branch], start: int, device: torch.device) -> None:
        """`start` tokens of a prefix come before every prompt. A completion's last token is left out:
        nothing is predicted from it."""
        ids: list[Ids] = []
        places: list[range] = []
        length = 0

        def stand(tokens: Ids, after: int) -> range:
            nonlocal length
            ids.append(tokens)
            places.append(range(after, after + len(tokens)))
            length += len(tokens)
            return range(length - len(tokens), length)

        prompts = [stand(b.prompt, start) for b in branches]
        bodies = [[stand(c[:-1], start + len(b.prompt)) for c in b.completions] for b in branches]
        self.ids = torch.tensor(list(chain.from_iterable(ids)), device=device)  # (N,)
        self.places = torch.tensor(list(chain.from_iterable(places)), device=device)
        """(N,) where each token stands in its own sequence."""
        self.prompts = prompts
        self.blocks = _blocks([*prompts, *chain.from_iterable(bodies)], device)
        """All sequences, in blocks of about the same length."""
        self.answers = [
            (slice(group[0].start, group[-1].stop), slice(prompt.start, prompt.stop))
            for prompt, group in zip(prompts, bodies, strict=True)
            if group and group[0].start < group[-1].stop
        ]
        """The flat places of all completions of a prompt, and of that prompt."""
        before = [[p[-1:], b] for p, group in zip(prompts, bodies, strict=True) for b in group]
        self.predicts = torch.tensor(list(chain.from_iterable(chain.from_iterable(before))), device=device)
        """The flat places whose states predict the completions' tokens, completion after completion."""


def _blocks(sequences: Sequence[range], device: torch.device) -> list[SequenceBlock]:
    """One block for each power of two that lengths lie below: at most half of a block is padding."""
    classes = {len(s).bit_length() for s in sequences if s}
    return [_block([s for s in sequences if len(s).bit_length() == c], device) for c in sorted(classes)]


def _block(sequences: Sequence[range], device: torch.device) -> SequenceBlock:
    longest = max(map(len, sequences))
    rows = [[*s, *[s[0]] * (longest - len(s))] for s in sequences]
    real = [[t < len(s) for t in range(longest)] for s in sequences]
    on = partial(torch.tensor, device=device)
    return SequenceBlock(on(rows), on(real), on(list(chain.from_iterable(sequences))))
