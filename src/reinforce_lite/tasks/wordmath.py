"""Arithmetic word problems in the manner of GSM8K: generated, offline, the same for the same seed.

    reinforce-lite train --task.name wordmath --task.level 2

A story follows one count from an opening through some events to a question. It is generated in
three stages: a plan, numbers for it, and words (`wordmath_stories.py`).

    have, gain, share ──▶ 12 + 6 = 18, 18 / 3 = 6 ──▶ "Ana has 12 shells. She finds 6 more shells. …"

Every step, such as 12 + 6, belongs to one split at all levels: a hash decides. So no step of a test
problem was seen in training, and a right answer is computed, not remembered. Omitted on purpose:
fractions, negative numbers, unit conversions, numbers written as words.

Numbers are drawn by rejection: a draw that does not fit raises `RejectedDraw` and is repeated.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import permutations
from typing import Literal, NamedTuple

from reinforce_lite.config import TaskConfig
from reinforce_lite.tasks.base import NumberTask, short_hash
from reinforce_lite.tasks.wordmath_stories import Event, PortableRandom, RejectedDrawError, load_worlds, tell
from reinforce_lite.types import Problem, Split
from reinforce_lite.utils.seeding import derive_seed, hash_fraction

SIZES: dict[Split, int] = {"train": 4_000, "validation": 400, "test": 1_000}
TRAIN_FRACTION, VALIDATION_FRACTION = 0.7, 0.1  # of all steps; the rest is test's
MAX_MOVE_DRAWS = 16  # draws of one move's numbers before the story is dropped
MAX_STORY_DRAWS = 5_000  # stories drawn for one problem before the operation counts as used up
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}

Plan = tuple[str, ...]
"""The names of a story's moves, in order."""


@dataclass(frozen=True, slots=True)
class Level:
    """How long the stories are and how large their numbers. All ranges include both ends."""

    steps: tuple[int, ...]
    """The possible numbers of steps."""
    amounts: tuple[int, int]
    """The smallest and the largest number that a story starts with, gains or loses."""
    max_factor: int
    """It multiplies and divides by 2 to this."""
    max_group_size: int
    """Its equal groups are of 2 to this."""
    max_number: int
    distractors: int = 0
    """Sentences with a number that plays no part."""


LEVELS = {
    1: Level((1,), amounts=(2, 12), max_factor=10, max_group_size=10, max_number=100),
    2: Level((2,), amounts=(2, 50), max_factor=10, max_group_size=12, max_number=100),
    3: Level((3,), amounts=(2, 100), max_factor=12, max_group_size=20, max_number=300, distractors=1),
    4: Level((4, 5), amounts=(20, 500), max_factor=12, max_group_size=100, max_number=4_000, distractors=2),
}


def load(config: TaskConfig) -> NumberTask:
    """Word problems of the config's level and seed."""
    train, validation, test = (generate(config.level, config.seed, split) for split in SIZES)
    return NumberTask(train, validation, test, config.answer_format)


@lru_cache(maxsize=16)
def generate(level: int, seed: int, split: Split) -> tuple[Problem, ...]:
    """A split's problems: the four operations alternate, and no question appears twice."""
    random = PortableRandom(derive_seed(seed, f"wordmath-{level}-{split}"))
    sampler = StepSampler(random, LEVELS[level], partial(_is_in_split, seed, split))
    operations = list(OPERATIONS)
    problems: dict[str, Problem] = {}
    while operations and len(problems) < SIZES[split]:
        operation = operations[len(problems) % len(operations)]
        problem = _draw_problem(level, operation, sampler, problems)
        if problem is None:
            operations.remove(operation)
        else:
            problems[problem.question] = problem
    return tuple(problems.values())


def _draw_problem(
    level: int, operation: str, sampler: "StepSampler", known_questions: Container[str]
) -> Problem | None:
    """A new problem with a step of this operation; None when none is found."""
    for _ in range(MAX_STORY_DRAWS):
        try:
            steps, question = _draw_story(operation, sampler)
        except RejectedDrawError:
            continue
        if question not in known_questions:
            return Problem(
                id=f"wordmath-{level}-{short_hash(question)}",
                question=question,
                gold=str(steps[-1].result),
                solution="\n".join(map(str, steps)),
            )
    return None


def _draw_story(operation: str, sampler: "StepSampler") -> "tuple[list[Step], str]":
    random, level = sampler.random, sampler.level
    world = random.pick(load_worlds())
    plan = random.pick(_plans_with(operation, random.pick(level.steps), frozenset(world.phrases)))
    steps, events = _play(plan, sampler)
    if max(number for step in steps for number in (step.left, step.right, step.result)) > world.largest:
        raise RejectedDrawError
    for _ in range(level.distractors):
        events.insert(random.between(1, len(events) - 1), Event("aside", {"n": random.between(5, 60)}))
    return steps, tell(world, events, random)


# ── Steps ──


class Step(NamedTuple):
    """One operation on whole numbers."""

    left: int
    operation: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operation} {self.right} = {self.result}"


def _is_in_split(seed: int, split: Split, left: int, operation: str, right: int) -> bool:
    """Whether this step belongs to the split. 3 + 5 and 5 + 3 are one step, as are 3 * 5 and 5 * 3."""
    if operation in "+*":
        left, right = sorted((left, right))
    fraction = hash_fraction(f"wordmath/{seed}/{left}{operation}{right}")
    if fraction < TRAIN_FRACTION:
        return split == "train"
    return split == ("validation" if fraction < TRAIN_FRACTION + VALIDATION_FRACTION else "test")


@dataclass(frozen=True, slots=True)
class StepSampler:
    """Draws the numbers of stories such that every step belongs to the split.

    Its methods raise RejectedDraw when the numbers do not fit the level or the split.
    """

    random: PortableRandom
    level: Level
    is_in_split: Callable[[int, str, int], bool]

    def start(self, operation: str) -> int:
        """An amount to start with that this operation can be applied to."""
        if operation == "*":
            return self.random.between(2, self.level.max_group_size)
        if operation == "/":
            divisor = self.random.between(2, self.level.max_factor)
            return divisor * self.random.between(2, self.level.max_group_size)
        return self.random.between(*self.level.amounts)

    def step(self, left: int, operation: str) -> Step:
        """Apply the operation with a drawn right operand."""
        return self.exact_step(left, operation, self._right_operand(left, operation))

    def exact_step(self, left: int, operation: str, right: int) -> Step:
        """Apply the operation with this right operand."""
        step = Step(left, operation, right, OPERATIONS[operation](left, right))
        fits = step.result > 0 and max(left, step.result) <= self.level.max_number
        if not fits or not self.is_in_split(left, operation, right):
            raise RejectedDrawError
        return step

    def _right_operand(self, left: int, operation: str) -> int:
        level = self.level
        if operation == "*":
            return self.random.between(2, min(level.max_factor, level.max_number // left))
        if operation == "/":
            divisors = [d for d in range(2, level.max_factor + 1) if left % d == 0 and left > d]
            return self.random.pick(divisors)
        low, high = level.amounts
        return self.random.between(low, min(high, left - 1) if operation == "-" else high)


# ── Moves ──
# A move's function takes the sampler, the count before the move and an operation.


class Outcome(NamedTuple):
    """What a move did."""

    steps: list[Step]
    amount: int
    """The story's count after it."""
    numbers: dict[str, int]
    """Its numbers in the text, by placeholder: n, and k for the number of groups."""


def _start(sampler: StepSampler, _: int, next_operation: str) -> Outcome:
    amount = sampler.start(next_operation)
    return Outcome([], amount, {"n": amount})


def _start_in_groups(sampler: StepSampler, _: int, operation: str) -> Outcome:
    """k boxes with n in each."""
    step = sampler.step(sampler.start(operation), operation)
    return Outcome([step], step.result, {"n": step.left, "k": step.right})


def _change(sampler: StepSampler, amount: int, operation: str) -> Outcome:
    """n more, n fewer, n times as many, or n equal parts."""
    step = sampler.step(amount, operation)
    return Outcome([step], step.result, {"n": step.right})


def _change_by_groups(sampler: StepSampler, amount: int, operation: str) -> Outcome:
    """k boxes with n in each are gained or lost."""
    groups = _start_in_groups(sampler, 0, "*")
    step = sampler.exact_step(amount, operation, groups.amount)
    return Outcome([*groups.steps, step], step.result, groups.numbers)


def _add_other_person(sampler: StepSampler, amount: int, operation: str) -> Outcome:
    """The other person's count, relative to this one, and then the sum of the two."""
    other = _change(sampler, amount, operation)
    total = sampler.exact_step(amount, "+", other.amount)
    return Outcome([*other.steps, total], total.result, other.numbers)


def _ask(_: StepSampler, amount: int, __: str) -> Outcome:
    return Outcome([], amount, {})


@dataclass(frozen=True, slots=True)
class Move:
    """Something that may happen in a story."""

    position: Literal["opening", "middle", "ending"]
    play: Callable[[StepSampler, int, str], Outcome]
    operation: str = ""
    """Applied to the count; empty where the move leaves it alone."""
    operations: str = ""
    """Of all its steps in order, where it has more than one."""
    second_person: bool = False
    """Introduces the other person, which only one move of a story can."""


MOVES = {
    "have": Move("opening", _start),
    "groups": Move("opening", _start_in_groups, "*"),
    "gain": Move("middle", _change, "+"),
    "lose": Move("middle", _change, "-"),
    "gain-groups": Move("middle", _change_by_groups, "+", "*+"),
    "lose-groups": Move("middle", _change_by_groups, "-", "*-"),
    "keep": Move("middle", _change, "/"),
    "more": Move("middle", _change, "+", second_person=True),
    "fewer": Move("middle", _change, "-", second_person=True),
    "times": Move("middle", _change, "*", second_person=True),
    "share": Move("ending", _change, "/"),
    "pack": Move("ending", _change, "/"),
    "sell": Move("ending", _change, "*"),
    "together": Move("ending", _change, "+", second_person=True),
    "gap": Move("ending", _change, "-", second_person=True),
    "more-together": Move("ending", _add_other_person, "+", "++", second_person=True),
    "fewer-together": Move("ending", _add_other_person, "-", "-+", second_person=True),
    "times-together": Move("ending", _add_other_person, "*", "*+", second_person=True),
    "ask": Move("ending", _ask),
}


# ── Plans ──


@cache
def _plans_with(operation: str, steps: int, moves: frozenset[str]) -> tuple[Plan, ...]:
    """The plans with this number of steps that use this operation and only these moves."""
    return tuple(p for p in _plans(steps) if operation in _operations(p) and moves.issuperset(p))


@cache
def _plans(steps: int) -> tuple[Plan, ...]:
    """Every plan with this number of steps: an opening, distinct events, and an ending."""
    middles = [order for length in range(steps + 1) for order in permutations(_moves_at("middle"), length)]
    middles = [order for order in middles if len(_operations(order)) <= steps]
    plans = ((o, *order, e) for o in _moves_at("opening") for order in middles for e in _moves_at("ending"))
    return tuple(p for p in plans if len(_operations(p)) == steps and _second_persons(p) <= 1)


def _moves_at(position: str) -> list[str]:
    return [name for name, move in MOVES.items() if move.position == position]


def _operations(plan: Plan) -> str:
    return "".join(MOVES[name].operations or MOVES[name].operation for name in plan)


def _second_persons(plan: Plan) -> int:
    return sum(MOVES[name].second_person for name in plan)


def _play(plan: Plan, sampler: StepSampler) -> tuple[list[Step], list[Event]]:
    """Draw numbers for a plan. Raises RejectedDraw when none are found."""
    steps: list[Step] = []
    events: list[Event] = []
    amount = 0
    for name, next_name in zip(plan, (*plan[1:], "ask"), strict=True):
        move = MOVES[name]
        outcome = _draw_outcome(move, sampler, amount, move.operation or MOVES[next_name].operation)
        amount = outcome.amount
        steps += outcome.steps
        events.append(Event(name, outcome.numbers))
    return steps, events


def _draw_outcome(move: Move, sampler: StepSampler, amount: int, operation: str) -> Outcome:
    for _ in range(MAX_MOVE_DRAWS):
        try:
            return move.play(sampler, amount, operation)
        except RejectedDrawError:
            continue
    raise RejectedDrawError
