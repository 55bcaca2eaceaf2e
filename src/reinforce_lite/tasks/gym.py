"""Tasks of reasoning-gym, each with its own scorer; needs the extra "gym".

    reinforce-lite train --task.name gym --task.path leg_counting

Their answers are often no numbers and may earn part of the reward, so there is no lenient verdict.
Several of their scorers run the answer as Python code, which is a model's text: answers that could
do more than state a value are never handed to them.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError, missing_extra
from reinforce_lite.tasks.base import normalized
from reinforce_lite.tasks.grading import single_answer
from reinforce_lite.tasks.tables import short_hash
from reinforce_lite.types import Problem, Reward, Split, Verdict
from reinforce_lite.utils.seeding import derive_seed

SIZES: dict[Split, int] = {"train": 2_000, "validation": 100, "test": 400}
# A question belongs to the first part that it comes up in: the measure first.
_BEFORE: dict[Split, tuple[Split, ...]] = {
    "test": (),
    "validation": ("test",),
    "train": ("test", "validation"),
}

# Their answers go to sympy's parse_expr, which evaluates even text that is not Python yet.
_PARSED_BY_SYMPY = frozenset(
    ["countdown", "puzzle24", "simple_integration", "intermediate_integration", "polynomial_multiplication"]
)
_FUNCTIONS = frozenset(
    [
        "Abs",
        "Integral",
        "acos",
        "asin",
        "atan",
        "cos",
        "cot",
        "csc",
        "exp",
        "ln",
        "log",
        "sec",
        "sin",
        "sqrt",
        "tan",
    ]
)
_SUMS = (ast.Expression, ast.Name, ast.Load, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop)
_DATA = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict)
_VALUES = (*_SUMS, *_DATA, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop)


def load(config: TaskConfig) -> "GymTask":
    """The reasoning-gym task named `config.path`, made with `config.params`."""
    _check_name(config.path)
    task = GymTask(config.path, config.params, config.seed)
    _ = task.scorer  # finds bad params now
    return task


@dataclass(frozen=True)
class GymTask:
    """One reasoning-gym task; each part is made when first asked for."""

    name: str
    params: Mapping[str, Any]
    seed: int
    _made: dict[Split, tuple[Problem, ...]] = field(default_factory=dict, repr=False)

    def problems(self, split: Split) -> Sequence[Problem]:
        if split not in self._made:
            held_out = _BEFORE[split]
            seen = {normalized(problem.question) for part in held_out for problem in self.problems(part)}
            self._made[split] = tuple(
                _new(_entries(self.name, self.params, self.seed, split), self.name, seen)
            )
        return self._made[split]

    def reward(self, problem: Problem, completion: str) -> Reward:
        """The scorer's own value for the one text in the answer blocks; 1 or more is right."""
        answer, reason = single_answer(completion)
        if answer is not None and not is_harmless(answer, _source(problem, self.name)):
            answer, reason = None, "an answer that would run as code"
        if answer is None:
            return Reward(0.0, strict=Verdict(False, None, reason))
        value = float(self.scorer.score_answer(answer, problem.info))
        right = value >= 1.0
        return Reward(value, strict=Verdict(right, answer, "right" if right else f"scored {value:g}"))

    @cached_property
    def scorer(self) -> Any:
        """A reasoning-gym data set; what it scores by is in the entry and the params."""
        return _create(self.name, self.params, self.seed, "train")


def _check_name(name: str) -> None:
    known = _gym().factory.DATASETS
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise UsageError(
            f"reasoning-gym has no task {name!r}"
            if name
            else "the gym task needs a reasoning-gym task's name",
            f"did you mean {near[0]!r}?" if near else "for example --task.path leg_counting",
        )


def _gym() -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise missing_extra("gym", "a reasoning-gym task") from None
    return reasoning_gym


def _create(name: str, params: Mapping[str, Any], seed: int, split: Split) -> Any:
    # Some of them seed numpy with seed + index, which must stay below 2^32.
    seed = derive_seed(seed, f"gym-{split}") % 2**31
    try:
        return _gym().create_dataset(name, size=SIZES[split], seed=seed, **params)
    except Exception as error:  # each of its tasks checks its params in a way of its own
        raise _refused(name, error) from error


def _entries(name: str, params: Mapping[str, Any], seed: int, split: Split) -> list[dict[str, Any]]:
    dataset = _create(name, params, seed, split)
    try:
        return [dataset[index] for index in range(len(dataset))]
    except Exception as error:  # what params no check caught do to a generator
        raise _refused(name, error) from error


def _refused(name: str, error: Exception) -> UsageError:
    return UsageError(
        f"reasoning-gym can't make {name} with these params: {type(error).__name__}: {error}",
        "change task.params",
    )


def _new(entries: Iterable[dict[str, Any]], name: str, seen: set[str]) -> Iterator[Problem]:
    """A problem of each entry whose question has not been seen."""
    for entry in entries:
        question = normalized(entry["question"])
        if question not in seen:
            seen.add(question)
            yield Problem(
                id=f"gym-{name}-{short_hash(question)}",
                question=entry["question"],
                gold=entry["answer"] or "",  # None where many answers are right
                info=entry,
            )


def _source(problem: Problem, name: str) -> str:
    """Whose scorer it is: a composite hands entries on to its parts."""
    return str(problem.info.get("metadata", {}).get("source_dataset", name))


def is_harmless(answer: str, scorer: str) -> bool:
    """Can this text do no more than state a value, if the scorer evaluates it?

    >>> harmless("[[1, 2], [3, 4]]", "binary_matrix"), harmless("sin(x)*2", "simple_integration")
    (True, True)
    >>> harmless("__import__('os').getcwd()", "binary_matrix")
    False
    """
    sympy = scorer in _PARSED_BY_SYMPY
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return not sympy  # eval() would refuse it as well; sympy rewrites it first
    return all(_is_sum(node) if sympy else isinstance(node, _VALUES) for node in ast.walk(tree))


def _is_sum(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):  # no text: sympy's functions evaluate what is in quotes
        return isinstance(node.value, int | float | complex)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    return isinstance(node, _SUMS)
