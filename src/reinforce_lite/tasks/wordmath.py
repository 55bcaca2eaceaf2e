"""Arithmetic word problems in GSM8K's manner: procedural, offline, the same for the same seed.

    reinforce-lite train --task.name wordmath --task.level 2

A story follows one count from an opening through some events to a question. It is made in three
pipeline: a plan, numbers for it, and words (`stories.py`).

    have, gain, share ──▶ 12 + 6 = 18, 18 / 3 = 6 ──▶ "Ana has 12 shells. She finds 6 more shells. …"

Every step, such as 12 + 6, belongs to one split, at whatever level: a hash decides. So no step of a
test problem was ever seen in training, and a right answer is computed, not remembered. Left out on
purpose: fractions, negative numbers, units to convert, numbers written as words.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import permutations
from typing import Literal, NamedTuple

from reinforce_lite.config import TaskConfig
from reinforce_lite.tasks.base import number_reward
from reinforce_lite.tasks.tables import short_hash
from reinforce_lite.tasks.wordmath_stories import Beat, Dice, Misfit, tell, worlds
from reinforce_lite.types import Problem, Reward, Split
from reinforce_lite.utils.seeding import derive_seed, hash_fraction

SIZES: dict[Split, int] = {"train": 4_000, "validation": 400, "test": 1_000}
TRAIN, VALIDATION = 0.7, 0.1  # of all steps; the rest is test's
TRIES = 16  # at the numbers of one move, before a story is begun anew
ATTEMPTS = 5_000  # at one problem, before its split is taken to own no such step
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}

Plan = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """How long the stories are and how large their numbers."""

    steps: tuple[int, ...]
    least: int
    most: int
    """What a story begins with, and what comes and goes, is `least` to `most`."""
    factor: int
    """Multiply and divide by 2 to this."""
    each: int
    """Equal groups are of 2 to this."""
    limit: int
    """No number is larger."""
    asides: int = 0
    """Sentences with a number that plays no part."""


LEVELS = {
    1: Level(steps=(1,), least=2, most=12, factor=10, each=10, limit=100),
    2: Level(steps=(2,), least=2, most=50, factor=10, each=12, limit=100),
    3: Level(steps=(3,), least=2, most=100, factor=12, each=20, limit=300, asides=1),
    4: Level(steps=(4, 5), least=20, most=500, factor=12, each=100, limit=4_000, asides=2),
}


class WordMath:
    """Word problems of one level, made when first asked for."""

    def __init__(self, level: int, seed: int) -> None:
        self.level = level
        self.seed = seed

    def problems(self, split: Split) -> Sequence[Problem]:
        return generate(self.level, self.seed, split)

    def reward(self, problem: Problem, completion: str) -> Reward:
        return number_reward(problem, completion)


def load(config: TaskConfig) -> WordMath:
    """Word problems of the config's level and seed."""
    return WordMath(config.level, config.seed)


@lru_cache(maxsize=16)
def generate(level: int, seed: int, split: Split) -> tuple[Problem, ...]:
    """A split's problems: the four operations take turns, and no question comes twice."""
    dice = Dice(derive_seed(seed, f"wordmath-{level}-{split}"))
    numbers = Numbers(dice, LEVELS[level], partial(_owns, seed, split))
    turns = list(OPERATIONS)
    found: dict[str, Problem] = {}
    while turns and len(found) < SIZES[split]:
        operation = turns[len(found) % len(turns)]
        problem = _problem(level, operation, numbers, found)
        if problem is None:
            turns.remove(operation)
        else:
            found[problem.question] = problem
    return tuple(found.values())


def _problem(level: int, operation: str, numbers: "Numbers", found: Container[str]) -> Problem | None:
    """A problem that is not found yet and has a step of this operation, if there is one."""
    for _ in range(ATTEMPTS):
        try:
            steps, question = _story(operation, numbers)
        except Misfit:
            continue
        if question not in found:
            return Problem(
                id=f"wordmath-{level}-{short_hash(question)}",
                question=question,
                gold=str(steps[-1].result),
                solution="\n".join(map(str, steps)),
            )
    return None


def _story(operation: str, numbers: "Numbers") -> "tuple[list[Step], str]":
    dice, level = numbers.dice, numbers.level
    world = dice.pick(worlds())
    plan = dice.pick(_plans_with(operation, dice.pick(level.steps), world.moves))
    steps, beats = _play(plan, numbers)
    if max(number for step in steps for number in (step.left, step.right, step.result)) > world.largest:
        raise Misfit
    for _ in range(level.asides):
        beats.insert(dice.between(1, len(beats) - 1), Beat("aside", {"n": dice.between(5, 60)}))
    return steps, tell(world, beats, dice)


# ── Steps ──


class Step(NamedTuple):
    """One operation on whole numbers."""

    left: int
    operation: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operation} {self.right} = {self.result}"


def _owns(seed: int, split: Split, left: int, operation: str, right: int) -> bool:
    """Is this step the split's? 3 + 5 is 5 + 3, and 3 * 5 is 5 * 3."""
    if operation in "+*":
        left, right = sorted((left, right))
    place = hash_fraction(f"wordmath/{seed}/{left}{operation}{right}")
    owner = "train" if place < TRAIN else "validation" if place < TRAIN + VALIDATION else "test"
    return owner == split


@dataclass(frozen=True, slots=True)
class Numbers:
    """Draws the numbers of stories so that every step is the split's own."""

    dice: Dice
    level: Level
    owns: Callable[[int, str, int], bool]

    def start(self, operation: str) -> int:
        """Something to begin with that this operation can be done to."""
        if operation == "*":
            return self.dice.between(2, self.level.each)
        if operation == "/":
            return self.dice.between(2, self.level.factor) * self.dice.between(2, self.level.each)
        return self.dice.between(self.level.least, self.level.most)

    def step(self, left: int, operation: str) -> Step:
        """Do this operation with a number that fits."""
        return self.exactly(left, operation, self._right(left, operation))

    def exactly(self, left: int, operation: str, right: int) -> Step:
        """Do this operation with this number."""
        step = Step(left, operation, right, OPERATIONS[operation](left, right))
        fits = step.result > 0 and max(left, step.result) <= self.level.limit
        if not fits or not self.owns(left, operation, right):
            raise Misfit
        return step

    def _right(self, left: int, operation: str) -> int:
        level = self.level
        if operation == "*":
            return self.dice.between(2, min(level.factor, level.limit // left))
        if operation == "/":
            divisors = [d for d in range(2, level.factor + 1) if left % d == 0 and left > d]
            return self.dice.pick(divisors)
        most = left - 1 if operation == "-" else level.most
        return self.dice.between(level.least, min(level.most, most))


# ── Moves ──


class Played(NamedTuple):
    """What a move came to."""

    steps: list[Step]
    amount: int
    """What the story's count is after it."""
    said: dict[str, int]


def _have(numbers: Numbers, _: int, following: str) -> Played:
    amount = numbers.start(following)
    return Played([], amount, {"n": amount})


def _groups(numbers: Numbers, _: int, operation: str) -> Played:
    """k boxes with n in each."""
    step = numbers.step(numbers.start(operation), operation)
    return Played([step], step.result, {"n": step.left, "k": step.right})


def _once(numbers: Numbers, amount: int, operation: str) -> Played:
    """n more, n fewer, n times as many, or equal parts."""
    step = numbers.step(amount, operation)
    return Played([step], step.result, {"n": step.right})


def _by_groups(numbers: Numbers, amount: int, operation: str) -> Played:
    """k boxes with n in each come or go."""
    groups = _groups(numbers, 0, "*")
    step = numbers.exactly(amount, operation, groups.amount)
    return Played([*groups.steps, step], step.result, groups.said)


def _with_other(numbers: Numbers, amount: int, operation: str) -> Played:
    """The other one has n more, and then both together."""
    other = _once(numbers, amount, operation)
    both = numbers.exactly(amount, "+", other.amount)
    return Played([*other.steps, both], both.result, other.said)


def _ask(_: Numbers, amount: int, __: str) -> Played:
    return Played([], amount, {})


@dataclass(frozen=True, slots=True)
class Move:
    """Something that may happen in a story."""

    place: Literal["opening", "middle", "ending"]
    play: Callable[[Numbers, int, str], Played]
    operation: str = ""
    """What is done to the count."""
    operations: str = ""
    """Of all its steps in order, where it has more than one."""
    second: bool = False
    """It brings in the other person, which only one move of a story can."""


MOVES = {
    "have": Move("opening", _have),
    "groups": Move("opening", _groups, "*"),
    "gain": Move("middle", _once, "+"),
    "lose": Move("middle", _once, "-"),
    "gain-groups": Move("middle", _by_groups, "+", "*+"),
    "lose-groups": Move("middle", _by_groups, "-", "*-"),
    "keep": Move("middle", _once, "/"),
    "more": Move("middle", _once, "+", second=True),
    "fewer": Move("middle", _once, "-", second=True),
    "times": Move("middle", _once, "*", second=True),
    "share": Move("ending", _once, "/"),
    "pack": Move("ending", _once, "/"),
    "sell": Move("ending", _once, "*"),
    "together": Move("ending", _once, "+", second=True),
    "gap": Move("ending", _once, "-", second=True),
    "more-together": Move("ending", _with_other, "+", "++", second=True),
    "fewer-together": Move("ending", _with_other, "-", "-+", second=True),
    "times-together": Move("ending", _with_other, "*", "*+", second=True),
    "ask": Move("ending", _ask),
}


# ── Plans ──


@cache
def _plans_with(operation: str, steps: int, moves: frozenset[str]) -> tuple[Plan, ...]:
    """The plans of so many steps, this operation among them, that have only these moves."""
    return tuple(p for p in _plans(steps) if operation in _operations(p) and moves.issuperset(p))


@cache
def _plans(steps: int) -> tuple[Plan, ...]:
    """Every story of so many steps: an opening, events of which none comes twice, and an ending."""
    middles = [order for length in range(steps + 1) for order in permutations(_moves("middle"), length)]
    middles = [order for order in middles if len(_operations(order)) <= steps]
    plans = ((o, *order, e) for o in _moves("opening") for order in middles for e in _moves("ending"))
    return tuple(p for p in plans if len(_operations(p)) == steps and sum(MOVES[m].second for m in p) <= 1)


def _moves(place: str) -> list[str]:
    return [name for name, move in MOVES.items() if move.place == place]


def _operations(plan: Plan) -> str:
    return "".join(MOVES[name].operations or MOVES[name].operation for name in plan)


def _play(plan: Plan, numbers: Numbers) -> tuple[list[Step], list[Beat]]:
    """Numbers for a plan."""
    steps: list[Step] = []
    beats: list[Beat] = []
    amount = 0
    for name, following in zip(plan, (*plan[1:], "ask"), strict=True):
        move = MOVES[name]
        new, amount, said = _fit(move, numbers, amount, move.operation or MOVES[following].operation)
        steps += new
        beats.append(Beat(name, said))
    return steps, beats


def _fit(move: Move, numbers: Numbers, amount: int, operation: str) -> Played:
    for _ in range(TRIES):
        try:
            return move.play(numbers, amount, operation)
        except Misfit:
            continue
    raise Misfit
