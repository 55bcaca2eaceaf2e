"""How work is divided among the processes of a run: pure arithmetic."""

from collections.abc import Hashable, Sequence
from itertools import pairwise
from math import ceil, prod


def split_by_key(keys: Sequence[Hashable], n: int) -> list[list[int]]:
    """The positions of each of n shares: the distinct keys are dealt out in turn.

    >>> split_by_key(["a", "b", "a", "c"], 2)
    [[0, 2, 3], [1]]
    """
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [[p for p, key in enumerate(keys) if number[key] % n == share] for share in range(n)]


def equal_parts(costs: Sequence[int], n: int) -> list[slice]:
    """A list of items cut into n parts of about equal cost, some of which may be empty.

    >>> equal_parts([3, 1, 1, 1], 2)
    [slice(0, 1, None), slice(1, 4, None)]
    """
    total, ends, spent = sum(costs), [0], 0
    for position, cost in enumerate(costs):
        while len(ends) < n and n * (spent + cost / 2) > total * len(ends):
            ends.append(position)
        spent += cost
    ends += [len(costs)] * (n + 1 - len(ends))
    return [slice(*pair) for pair in pairwise(ends)]


def part_length(shape: Sequence[int], n: int, by_rows: bool = False) -> int:
    """Elements of the longest of n parts of a tensor; `by_rows` parts are whole rows, as FSDP2 cuts tensors.

    >>> part_length((5, 4), 2), part_length((5, 4), 2, by_rows=True)
    (10, 12)
    """
    row = prod(shape[1:]) if by_rows else 1
    return ceil(prod(shape) / row / n) * row
