"""Which completions a page shows when there are too many: a bounded, representative selection."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby, zip_longest
from random import Random
from statistics import fmean
from typing import TypeVar

from reinforce_lite.report.eval_history import OUTCOMES, EvalHistory, ProblemKey
from reinforce_lite.report.serialize import completion, page_bytes, question
from reinforce_lite.runlog.records import Record, hits

MAX_TRAINING = 6_000
"""Training completions in a page."""
MAX_EVALUATION = 2_000
"""Completions of evaluations in a page."""
MAX_BYTES = 5_000_000
"""Bytes in a page, for each of the two."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GroupStats:
    """What the selection knows of a group of training completions."""

    index: int
    """Its position among the groups of rollouts.jsonl."""
    step: int
    n_completions: int
    size: int
    """Bytes in the page."""
    interest: tuple[bool, bool, bool]
    """Has a reflection hit, has right and wrong completions, has a truncated one; the first counts most."""
    reward: float | None
    """Mean of the completions whose reward did not fail; None if there are none."""
    strict: float | None
    """Share of them that is right."""


def group_stats(index: int, group: Sequence[Record]) -> GroupStats:
    """What the selection needs to know of a group's lines."""
    interest = (
        any(hits(line) for line in group),
        len({line["strict"] for line in group if not line.get("fault")}) > 1,
        any(line["truncated"] for line in group),
    )
    size = page_bytes(question(group[0])) + sum(page_bytes(completion(line)) for line in group)
    scored = [line for line in group if not line.get("fault")]
    reward, strict = (fmean(line[k] for line in scored) if scored else None for k in ("reward", "strict"))
    return GroupStats(index, group[0]["step"], len(group), size, interest, reward, strict)


def select_groups(groups: Sequence[GroupStats], n_runs: int = 1) -> set[int]:
    """The indices of the groups to show: one of every step, then a second one of every step, and so on.

    A step's groups alternate between the most interesting one and a random one, so that ordinary groups
    are shown too; half of the steps start with the random one. If not even one group a step fits, the first
    and the last step come first, then those halfway between. Each of `n_runs` runs gets an equal part.
    """
    steps = [list(step_groups) for _, step_groups in groupby(groups, key=lambda group: group.step)]
    queues = [
        _alternate(steps[i], random_first=rank // 2 % 2 == 1)
        for rank, i in enumerate(spread_order(len(steps)))
    ]
    costs = {g.index: (g.n_completions, g.size) for g in groups}
    return set(take_in_turn(queues, costs, (MAX_TRAINING // n_runs, MAX_BYTES // n_runs)))


def _alternate(groups: Sequence[GroupStats], random_first: bool) -> list[int]:
    """The indices of a step's groups, alternately the most interesting remaining one and a random one.

    The draw depends only on the step, so a report that is rewritten shows the same groups.
    """
    remaining = sorted(groups, key=lambda g: g.interest, reverse=True)
    random, indices, draw = Random(remaining[0].step), [], random_first
    while remaining:
        indices.append(remaining.pop(random.randrange(len(remaining)) if draw else 0).index)
        draw = not draw
    return indices


def select_questions(history: EvalHistory, n_runs: int = 1) -> list[ProblemKey]:
    """The held-out problems to show, test first: as many of every outcome, those with a reflection hit first.

    Validation problems, which have a completion from every evaluation, get at most half of the room.
    """
    costs = {
        key: (len(by_step), sum(c.size for c in by_step.values()))
        for key, by_step in history.problems.items()
    }
    n, size = MAX_EVALUATION // n_runs, MAX_BYTES // n_runs
    validation = take_in_turn(_by_outcome(history, "validation"), costs, (n // 2, size // 2))
    room = n - sum(costs[key][0] for key in validation), size - sum(costs[key][1] for key in validation)
    return take_in_turn(_by_outcome(history, "test"), costs, room) + validation


def _by_outcome(history: EvalHistory, split: str) -> list[list[ProblemKey]]:
    """A split's problems by outcome, from the first evaluation of each to its last; hits come first."""
    queues: dict[str, list[ProblemKey]] = {name: [] for name in OUTCOMES.values()}
    hits_first = sorted(history.problems.items(), key=lambda item: not any(c.lists for c in item[1].values()))
    for key, by_step in hits_first:
        if key[0] == split:
            right = [by_step[step].strict for step in sorted(by_step) if by_step[step].scored] or [False]
            queues[OUTCOMES[right[0], right[-1]]].append(key)
    return list(queues.values())


def take_in_turn(
    queues: Sequence[Sequence[T]], costs: dict[T, tuple[int, int]], limits: tuple[int, int]
) -> list[T]:
    """The first item of every queue, then the second of every queue, and so on, within the limits.

    `costs` and `limits` are completions and bytes. An item that does not fit is skipped; a smaller one may
    follow.

    >>> take_in_turn([["a", "b"], ["c"]], {"a": (5, 1), "b": (5, 1), "c": (5, 1)}, (10, 10))
    ['a', 'c']
    """
    taken: list[T] = []
    n_left, bytes_left = limits
    for item in chain.from_iterable(zip_longest(*queues)):
        if item is not None:  # the end of a shorter queue
            n, size = costs[item]
            if n <= n_left and size <= bytes_left:
                n_left, bytes_left = n_left - n, bytes_left - size
                taken.append(item)
    return taken


def spread_order(n: int) -> list[int]:
    """0 to n-1 in an order whose every prefix is spread evenly: first, last, then what halves the gaps.

    >>> spread_order(5)
    [0, 4, 2, 1, 3]
    """
    bits = max(1, (n - 1).bit_length())
    outer = [0, n - 1] if n > 1 else [0] * n
    inner = sorted(range(1, n - 1), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    return outer + inner
