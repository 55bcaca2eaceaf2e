"""Which answers a page shows when there are too many: a bounded choice that speaks for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from reinforce_lite.report import cards
from reinforce_lite.report.asked import Asked, Key
from reinforce_lite.runlog import Line

ANSWERS = 6_000
"""Of training, in a page."""
ASKED = 2_000
"""Of evaluations, in a page."""
BYTES = 5_000_000
"""Of each of the two, in a page."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """A group of training answers, as the choice knows it."""

    place: int
    """Its number in the file."""
    step: int
    size: int
    cost: int
    """Bytes in the page."""
    worth: tuple[bool, bool, bool]
    """A reflection hit, right and wrong side by side, a cut answer: the first counts most."""


def seen(place: int, group: Sequence[Line]) -> Seen:
    """A group's lines as the choice knows them."""
    worth = (
        any(line.get("reflection") for line in group),
        len({line["strict"] for line in group}) > 1,
        any(line["truncated"] for line in group),
    )
    cost = cards.question_cost(group[0]) + sum(map(cards.cost, group))
    return Seen(place, group[0]["step"], len(group), cost, worth)


def of_groups(found: Sequence[Seen], share: int = 1) -> set[int]:
    """The places of the groups to show: of every step the most telling, then of every step the next.

    Where even one group a step is too much, the first and the last step come first, then those halfway.
    A page of `share` runs gives each its part.
    """
    by_step: dict[int, list[Seen]] = {}
    for group in found:
        by_step.setdefault(group.step, []).append(group)
    queues = [sorted(groups, key=lambda g: g.worth, reverse=True) for groups in by_step.values()]
    costs = {g.place: (g.size, g.cost) for g in found}
    order = [[g.place for g in queues[i]] for i in spread(len(queues))]
    return set(take(order, costs, (ANSWERS // share, BYTES // share)))


def of_questions(asked: Asked, share: int = 1) -> list[Key]:
    """The held-out problems to show: of every kind of change as many, those with a reflection hit first."""
    marks = asked.marks
    hits = {key: any(m.lists for m in found.values()) for key, found in marks.items()}
    queues = [sorted(keys, key=lambda k: not hits[k]) for keys in asked.kinds().values()]
    costs = {key: (len(found), sum(m.cost for m in found.values())) for key, found in marks.items()}
    return take(queues, costs, (ASKED // share, BYTES // share))


def take(queues: Sequence[Sequence[T]], costs: dict[T, tuple[int, int]], limits: tuple[int, int]) -> list[T]:
    """The first of every queue, then the second of every queue, and so on, within the limits.

    `costs` and `limits` are answers and bytes. What does not fit is passed over; something smaller may.

    >>> take([["a", "b"], ["c"]], {"a": (5, 1), "b": (5, 1), "c": (5, 1)}, (10, 10))
    ['a', 'c']
    """
    taken: list[T] = []
    answers, size = limits
    for rank in range(max(map(len, queues), default=0)):
        for queue in queues:
            if rank < len(queue):
                n, cost = costs[queue[rank]]
                if n <= answers and cost <= size:
                    answers, size = answers - n, size - cost
                    taken.append(queue[rank])
    return taken


def spread(n: int) -> list[int]:
    """0 to n-1 so that every beginning of the list lies evenly: first, last, then what halves the gaps.

    >>> spread(5)
    [0, 4, 2, 1, 3]
    """
    bits = max(1, (n - 1).bit_length())
    ends = [0, n - 1] if n > 1 else [0] * n
    inner = sorted(range(1, n - 1), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    return ends + inner
