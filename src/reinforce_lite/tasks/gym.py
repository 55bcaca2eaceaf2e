"""Tasks of reasoning-gym (https://github.com/open-thought/reasoning-gym); needs the extra "gym".

    reinforce-lite train --task.name gym --task.path leg_counting

Each has its own scorer. Their answers are often not numbers and may earn a partial reward, so there
is no lenient verdict. Several scorers evaluate the answer, a model's text, as Python code: an answer
that could do more than state a value is never passed to them.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError, missing_extra
from reinforce_lite.tasks.base import normalize_question, short_hash
from reinforce_lite.tasks.grading import extract_answer
from reinforce_lite.types import AnswerFormat, Problem, Reward, Split, Verdict
from reinforce_lite.utils.seeding import derive_seed
from reinforce_lite.utils.text import did_you_mean, one_line_error

SIZES: dict[Split, int] = {"train": 2_000, "validation": 100, "test": 400}
# A question that several splits generate belongs to the first of test, validation, train.
_EARLIER_SPLITS: dict[Split, tuple[Split, ...]] = {
    "test": (),
    "validation": ("test",),
    "train": ("test", "validation"),
}

# Scorers that pass the answer to sympy's parse_expr, which rewrites text into Python before it evaluates it.
_PARSED_BY_SYMPY = frozenset(
    ["countdown", "puzzle24", "simple_integration", "intermediate_integration", "polynomial_multiplication"]
)
_TRIGONOMETRY = ("acos", "asin", "atan", "cos", "cot", "csc", "sec", "sin", "tan")
_SYMPY_FUNCTIONS = frozenset(["Abs", "Integral", "exp", "ln", "log", "sqrt", *_TRIGONOMETRY])
_ARITHMETIC = (ast.Expression, ast.Name, ast.Load, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop)
_LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict)
_VALUES = (*_ARITHMETIC, *_LITERALS, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop)


def load(config: TaskConfig) -> "GymTask":
    """The reasoning-gym task named `config.path`. Raises UsageError for a bad name or bad `config.params`."""
    _check_name(config.path)
    task = GymTask(config.path, config.params, config.seed, config.answer_format)
    _ = task.scorer  # refuses bad params now, not at the first reward
    return task


@dataclass(frozen=True)
class GymTask:
    """One reasoning-gym task; each split is generated at its first use."""

    name: str
    params: Mapping[str, Any]
    seed: int
    answer_format: AnswerFormat = "tags"
    _problems: dict[Split, tuple[Problem, ...]] = field(default_factory=dict, repr=False)

    def problems(self, split: Split) -> Sequence[Problem]:
        """See `Task`."""
        if split not in self._problems:
            earlier = [problem for part in _EARLIER_SPLITS[split] for problem in self.problems(part)]
            seen = {normalize_question(problem.question) for problem in earlier}
            entries = _generate_entries(self.name, self.params, self.seed, split)
            self._problems[split] = tuple(_unseen_problems(entries, self.name, seen))
        return self._problems[split]

    def reward(self, problem: Problem, completion: str) -> Reward:
        """The scorer's own value for the extracted answer; 1 or more is right."""
        answer, reason = extract_answer(completion, self.answer_format)
        if answer is not None and not is_safe_to_score(answer, _scorer_name(problem, self.name)):
            answer, reason = None, "an answer that would run as code"
        if answer is None:
            return Reward(0.0, strict=Verdict(False, None, reason))
        value = float(self.scorer.score_answer(answer, problem.info))
        right = value >= 1.0
        return Reward(value, strict=Verdict(right, answer, "right" if right else f"scored {value:g}"))

    @cached_property
    def scorer(self) -> Any:
        """A reasoning-gym data set. It scores by the entry and the params, so any split's will do."""
        return _create_dataset(self.name, self.params, self.seed, "train")


def _check_name(name: str) -> None:
    known = _import_gym().factory.DATASETS
    if name not in known:
        raise UsageError(
            f"reasoning-gym has no task {name!r}"
            if name
            else "the gym task needs a reasoning-gym task's name",
            did_you_mean(name, known, "for example --task.path leg_counting"),
        )


def _import_gym() -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise missing_extra("gym", "a reasoning-gym task") from None
    return reasoning_gym


def _create_dataset(name: str, params: Mapping[str, Any], seed: int, split: Split) -> Any:
    # Some data sets seed numpy with seed + index, which must stay below 2^32.
    seed = derive_seed(seed, f"gym-{split}") % 2**31
    try:
        return _import_gym().create_dataset(name, size=SIZES[split], seed=seed, **params)
    except Exception as error:  # each data set checks its params in a way of its own
        raise _params_error(name, error) from error


def _generate_entries(name: str, params: Mapping[str, Any], seed: int, split: Split) -> list[dict[str, Any]]:
    dataset = _create_dataset(name, params, seed, split)
    try:
        return [dataset[index] for index in range(len(dataset))]
    except Exception as error:  # params that passed the checks may still break the generator
        raise _params_error(name, error) from error


def _params_error(name: str, error: Exception) -> UsageError:
    return UsageError(
        f"reasoning-gym can't generate {name} with these params: {one_line_error(error)}",
        "change task.params",
    )


def _unseen_problems(entries: Iterable[dict[str, Any]], name: str, seen: set[str]) -> Iterator[Problem]:
    """A problem for each entry whose question is not in `seen`; adds them to it."""
    for entry in entries:
        question = normalize_question(entry["question"])
        if question not in seen:
            seen.add(question)
            yield Problem(
                id=f"gym-{name}-{short_hash(question)}",
                question=entry["question"],
                gold=entry["answer"] or "",  # None where several answers are right
                info=entry,
            )


def _scorer_name(problem: Problem, name: str) -> str:
    """The data set that scores this problem: a composite passes entries on to its parts."""
    return str(problem.info.get("metadata", {}).get("source_dataset", name))


def is_safe_to_score(answer: str, scorer: str) -> bool:
    """Whether this text can do no more than state a value, should the scorer evaluate it as code.

    >>> is_safe_to_score("[[1, 2], [3, 4]]", "binary_matrix"), is_safe_to_score("sin(x)*2", "countdown")
    (True, True)
    >>> is_safe_to_score("__import__('os').getcwd()", "binary_matrix")
    False
    """
    sympy = scorer in _PARSED_BY_SYMPY
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return not sympy  # eval() would refuse it too; sympy would first rewrite it
    return all(_is_arithmetic(node) if sympy else isinstance(node, _VALUES) for node in ast.walk(tree))


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):  # no strings: sympy's functions evaluate them
        return isinstance(node.value, int | float | complex)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _SYMPY_FUNCTIONS
    return isinstance(node, _ARITHMETIC)
