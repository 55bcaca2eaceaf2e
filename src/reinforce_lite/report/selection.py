"""Which answers a page shows when there are too many: a bounded choice that speaks for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from reinforce_lite.report import serialize
from reinforce_lite.report.eval_history import EvalHistory, Key
from reinforce_lite.runlog.run import Line

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
    cost = serialize.question_cost(group[0]) + sum(map(serialize.cost, group))
    return Seen(place, group[0]["step"], len(group), cost, worth)


def of_groups(found: Sequence[Seen], share: int = 1) -> set[int]:
    """The places of the groups to show: one of every step, then of every step the next.

    By turns the most telling group and one at random, so that ordinary ones are shown too; every other step
    begins with the random one. Where even one group a step is too much, the first and the last step come
    first, then those halfway. A page of `share` runs gives each its part.
    """
    by_step: dict[int, list[Seen]] = {}
    for group in found:
        by_step.setdefault(group.step, []).append(group)
    steps = list(by_step.values())
    queues = [_by_turns(steps[i], at_random=rank // 2 % 2 == 1) for rank, i in enumerate(spread(len(steps)))]
    costs = {g.place: (g.size, g.cost) for g in found}
    return set(take(queues, costs, (ANSWERS // share, BYTES // share)))


def _by_turns(groups: Sequence[Seen], at_random: bool) -> list[int]:
    """The places of a step's groups, the most telling of those left and one drawn at random by turns.

    The draw depends on the step alone: a report that is written again shows the same.
    """
    left = sorted(groups, key=lambda g: g.worth, reverse=True)
    random, places = Random(left[0].step), []
    while left:
        places.append(left.pop(random.randrange(len(left)) if at_random else 0).place)
        at_random = not at_random
    return places


def of_questions(asked: EvalHistory, share: int = 1) -> list[Key]:
    """The held-out problems to show, test first: of every outcome as many, those with a reflection hit first.

    Validation problems, asked at every evaluation, get half of the room at most.
    """
    costs = {key: (len(found), sum(m.cost for m in found.values())) for key, found in asked.marks.items()}
    answers, size = ASKED // share, BYTES // share
    often = take(_by_outcome(asked, "validation"), costs, (answers // 2, size // 2))
    left = answers - sum(costs[key][0] for key in often), size - sum(costs[key][1] for key in often)
    return take(_by_outcome(asked, "test"), costs, left) + often


def _by_outcome(asked: EvalHistory, split: str) -> list[list[Key]]:
    """A split's problems, a list an outcome, those with a reflection hit first."""

    def plain(key: Key) -> bool:
        return not any(mark.lists for mark in asked.marks[key].values())

    return [sorted((k for k in keys if k[0] == split), key=plain) for keys in asked.kinds().values()]


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
