"""Tasks of reasoning-gym (https://github.com/open-thought/reasoning-gym); needs the extra "gym".

    reinforce-lite train --task.name gym --task.path leg_counting

Each has its own scorer. Their answers are often not numbers and may earn a partial reward, so there
is no lenient verdict. Scorers are not reliable, so they run in worker processes within limits
(`reward_worker.py`). An answer that could harm one is refused before it is scored (`answer_bounds.py`), and
an error of the scorer is a reward of 0. A task that pays for a constant answer is refused or named in a
warning. An answer that only contains the gold earns 0, whatever the scorer says.

Problems are generated here and sent to a worker with each completion: some data sets generate different ones
in another process.
"""

import base64
import logging
import math
import pickle
import re
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from statistics import fmean
from typing import Any

from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError, missing_extra
from reinforce_lite.tasks.answer_bounds import refusal
from reinforce_lite.tasks.base import normalize_question, short_hash
from reinforce_lite.tasks.grading import extract_answer
from reinforce_lite.tasks.reward_worker import WorkerTask
from reinforce_lite.tasks.rewards import RIGHT, Outcome, outcome_to_json
from reinforce_lite.types import Problem, Reward, Split, Verdict
from reinforce_lite.utils.seeding import derive_seed
from reinforce_lite.utils.text import did_you_mean, one_line_error, shorten

logger = logging.getLogger(__name__)

SIZES: dict[Split, int] = {"train": 2_000, "validation": 100, "test": 400}
# A question that several splits generate belongs to the first of test, validation, train.
_EARLIER_SPLITS: dict[Split, tuple[Split, ...]] = {
    "test": (),
    "validation": ("test",),
    "train": ("test", "validation"),
}

AUDIT_PROBLEMS = 30
AUDIT_SECONDS = 20.0  # sympy's scorers take up to seconds for an answer
MAX_CONSTANT_REWARD = 0.3
CONSTANTS = ("", "0", "1", "yes", "True", "None", "[]")
_GRID = re.compile(r"(?=.*[\s,])[\d\s,.\[\]-]+", re.DOTALL)


def load(config: TaskConfig) -> "GymTask":
    """The reasoning-gym task named `config.path`.

    Raises UsageError for a bad name or bad `config.params`, and for a task that pays for a constant.
    """
    _check_name(config.path)
    task = GymTask(config)
    _check_constants(task)  # creates a data set: bad params are refused now, not at the first reward
    return task


class GymTask(WorkerTask):
    """One reasoning-gym task; each split is generated at its first use."""

    module = "gym"

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config, config.path)
        self._problems: dict[Split, tuple[Problem, ...]] = {}

    def problems(self, split: Split) -> Sequence[Problem]:
        """See `Task`."""
        if split not in self._problems:
            earlier = [problem for part in _EARLIER_SPLITS[split] for problem in self.problems(part)]
            seen = {normalize_question(problem.question) for problem in earlier}
            entries = _generate_entries(_create_dataset(self.config, split), self.name, SIZES[split])
            problems = tuple(_unseen_problems(entries, self.name, seen))
            if len(problems) < len(entries):
                logger.warning(
                    "%s: %d of %d %s problems repeat a question and are dropped",
                    self.name,
                    len(entries) - len(problems),
                    len(entries),
                    split,
                )
            self._problems[split] = problems
        return self._problems[split]

    def item(self, problem: Problem, completion: str) -> list[Any]:
        """See `WorkerTask`. An entry may hold dates and sympy's expressions, which JSON has not."""
        return [base64.b64encode(pickle.dumps(problem)).decode(), completion]


def serve(config: str, _: None) -> "GymScorer":
    """In the worker: the scorer of a [task] section, given as TOML."""
    return GymScorer(TaskConfig.model_validate(tomllib.loads(config)))


class GymScorer:
    """Runs in the worker: scores completions and answers."""

    def __init__(self, config: TaskConfig) -> None:
        self.config, self.name = config, config.path

    def hello(self, _: Sequence[Split]) -> None:
        """Be ready: create the data set."""
        assert self.scorer

    def rewards(self, items: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """The outcome of each (problem, completion)."""
        return [outcome_to_json(Outcome(self.reward(_unpack(problem), text))) for problem, text in items]

    def scores(self, items: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """The outcome of each (problem, extracted answer)."""
        return [outcome_to_json(Outcome(self.score(_unpack(problem), text))) for problem, text in items]

    def reward(self, problem: Problem, completion: str) -> Reward:
        """The scorer's own value for the extracted answer; 1 or more is right."""
        answer, reason = extract_answer(completion, self.config.answer_format)
        if answer is None:
            return Reward(0.0, strict=Verdict(False, None, reason))
        return self.score(problem, answer)

    def score(self, problem: Problem, answer: str) -> Reward:
        """The scorer's own value for an extracted answer; 0, with the reason, where it has none."""
        with warnings.catch_warnings(action="ignore"):  # about a model's text: nobody can mend it
            reason = "" if answer == problem.gold else refusal(answer, _scorer_name(problem, self.name))
            if reason:
                return Reward(0.0, strict=Verdict(False, shorten(answer), reason))
            try:
                value = float(self.scorer.score_answer(answer, problem.info))
                if not math.isfinite(value):
                    raise ValueError(f"a reward of {value}")
            except Exception as error:  # scorers fail on what they can't read, each in a way of its own
                reason = f"the scorer raised {one_line_error(error)}"
                return Reward(0.0, strict=Verdict(False, answer, reason))
        if _is_paid_for_containing(problem.gold, answer, value):
            return Reward(0.0, strict=Verdict(False, answer, "contains the gold, but is another answer"))
        right = value >= RIGHT
        return Reward(value, strict=Verdict(right, answer, "right" if right else f"scored {value:g}"))

    @cached_property
    def scorer(self) -> Any:
        """A reasoning-gym data set. It scores by the entry and the params, so any split's will do."""
        return _create_dataset(self.config, "train")


def _unpack(problem: str) -> Problem:
    """What `GymTask.item` has packed; only the trainer writes to a worker."""
    unpacked: Problem = pickle.loads(base64.b64decode(problem))  # noqa: S301
    return unpacked


def _is_paid_for_containing(gold: str, answer: str, value: float) -> bool:
    """Whether a scorer paid the gold's share of a longer answer's characters, as many of them do.

    That is meant for words around the gold, but pays 0.5 for 11 where the gold is 1, and a model learns to
    answer 11 (docs/log.md).
    """
    if not 0 < value < 1:
        return False
    for left_out in ("", ","):  # some compare numbers without their commas
        whole, part = (text.strip().upper().replace(left_out, "") for text in (answer, gold))
        if part and part in whole and math.isclose(value, len(part) / len(whole)):
            return True
    return False


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


def _create_dataset(config: TaskConfig, split: Split) -> Any:
    name, params = config.path, config.params
    # Some data sets seed numpy with seed + index, which must stay below 2^32.
    seed = derive_seed(config.seed, f"gym-{split}") % 2**31
    try:
        if name == "composite" and "datasets" in params:
            params = {**params, "datasets": [_dataset_spec(**each) for each in params["datasets"]]}
        return _import_gym().create_dataset(name, size=SIZES[split], seed=seed, **params)
    except Exception as error:  # each data set checks its params in a way of its own
        raise _params_error(name, error) from error


def _dataset_spec(name: str, weight: float = 1.0, config: Mapping[str, Any] | None = None) -> Any:
    """A part of a composite, by the keys that reasoning-gym gives it."""
    from reasoning_gym.composite import DatasetSpec

    return DatasetSpec(name, weight, dict(config or {}))


def _generate_entries(dataset: Any, name: str, n: int) -> list[dict[str, Any]]:
    try:
        return [dataset[index] for index in range(min(n, len(dataset)))]
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
            yield _make_problem(entry, name)


def _make_problem(entry: dict[str, Any], name: str) -> Problem:
    question = entry["question"]
    return Problem(
        id=f"gym-{name}-{short_hash(normalize_question(question))}",
        question=question,
        gold=entry["answer"] or "",  # None where several answers are right
        info=entry,
    )


def _scorer_name(problem: Problem, name: str) -> str:
    """The data set that scores this problem: a composite passes entries on to its parts."""
    return str(problem.info.get("metadata", {}).get("source_dataset", name))


def _check_constants(task: GymTask) -> None:
    """Refuse a task that one constant answer solves, and name a constant that pays well.

    Tried are `CONSTANTS`, a grid of zeros, and the golds of other problems.
    """
    entries = _generate_entries(_create_dataset(task.config, "train"), task.name, AUDIT_PROBLEMS)
    problems = [_make_problem(entry, task.name) for entry in entries]
    task.start()
    paid: list[str] = []
    end = time.monotonic() + AUDIT_SECONDS
    for name, answers in _constants(problems):
        if time.monotonic() > end:
            break
        rewards = _constant_rewards(task, problems, answers, end)
        if rewards and min(rewards) >= RIGHT:
            raise UsageError(
                f"reasoning-gym's scorer of {task.name} pays 1 for {name} on each of {len(rewards)} problems",
                "train on another task, or change task.params",
            )
        if rewards and (mean := fmean(rewards)) > MAX_CONSTANT_REWARD:
            paid.append(f"{mean:.2f} for {name}")
    if paid:
        logger.warning("whatever the question is, %s pays on average %s", task.name, "; ".join(paid))


def _constant_rewards(
    task: GymTask, problems: Sequence[Problem], answers: Sequence[str], end: float
) -> list[float]:
    """The reward of one answer per problem; empty if the scorer fails on one, or time runs out."""
    items = [task.item(problem, answer) for problem, answer in zip(problems, answers, strict=True)]
    rewards: list[float] = []
    with closing(task.score(items, "scores")) as outcomes:
        for _, outcome in outcomes:
            if outcome.reward is None or time.monotonic() > end:
                return []
            rewards.append(outcome.reward.value)
    return rewards


def _constants(problems: Sequence[Problem]) -> Iterator[tuple[str, list[str]]]:
    """(description, the answer to each problem) of each constant."""
    golds = Counter(problem.gold for problem in problems if problem.gold not in CONSTANTS)
    for constant in (*CONSTANTS, *(gold for gold, _ in golds.most_common(3))):
        yield repr(shorten(constant, 60)), [constant] * len(problems)
    if all(_GRID.fullmatch(problem.gold) for problem in problems):
        yield "zeros in place of its numbers", [re.sub(r"\d+", "0", p.gold) for p in problems]
