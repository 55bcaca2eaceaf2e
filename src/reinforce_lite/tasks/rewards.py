"""A reward function: called as its signature asks, its results checked, and passed between processes as JSON.

    def reward(problem, completion) -> float | Reward              # one completion
    def reward(completions, prompts, gold, **columns) -> list      # several, the way of TRL

Both may be `async def`. The second gets, as lists and by name, what its signature asks for: `completions`,
`prompts` or `questions` or `question` (texts), `gold` or `answer`, `solution`, `id`, and the keys of
`Problem.info`; with `**columns` all of them.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

from reinforce_lite.types import Problem, Reward, Verdict
from reinforce_lite.utils.text import one_line_error

RIGHT = 1 - 1e-6  # a reward without a verdict is right from here on: 0.7 + 0.2 + 0.1 is below 1
MAX_REWARD = 1e30  # float32, in which losses are computed, ends at 3e38
MAX_TEXT = 100_000  # characters of a verdict's answer or reason


@dataclass(frozen=True, slots=True)
class Outcome:
    """What calling the reward on one completion came to."""

    reward: Reward | None
    """None where it failed."""
    fault: str = ""
    """How it failed, in one line."""
    seconds: float = 0.0
    """Lost to a call that had to be ended."""


class RewardFunction:
    """A user's reward, on several completions per call if it takes `completions`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._parameters = _parameters(function)
        self.batched = "completions" in self._parameters
        self._runner = asyncio.Runner()  # one event loop for all calls, as sessions of HTTP clients need it
        self._thread = ThreadPoolExecutor(1)  # which starts none until it is used

    def __call__(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Outcome]:
        """An outcome for each completion, which is one unless `batched`. Raises what the function raises."""
        if not self.batched:
            ((problem,), (completion,)) = problems, completions
            return [_outcome(self._finished(self.function(problem, completion)))]
        results = self._finished(self.function(**self._columns(problems, completions)))
        if isinstance(results, Mapping | AbstractSet | str | bytes):
            raise TypeError(f"the reward returned {type(results).__name__}, not a list of rewards")
        results = list(results)
        if len(results) != len(completions):
            raise ValueError(f"the reward returned {len(results)} rewards for {len(completions)} completions")
        return [_outcome(result) for result in results]

    def _finished(self, result: Any) -> Any:
        if not inspect.isawaitable(result):
            return result
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._runner.run(_wait_for(result))
        # In a notebook this thread runs a loop already.
        return self._thread.submit(self._runner.run, _wait_for(result)).result()

    def _columns(self, problems: Sequence[Problem], completions: Sequence[str]) -> dict[str, list[Any]]:
        questions, golds = [p.question for p in problems], [p.gold for p in problems]
        columns: dict[str, list[Any]] = dict.fromkeys(("prompts", "questions", "question"), questions)
        columns |= {"gold": golds, "answer": golds, "solution": [p.solution for p in problems]}
        columns["id"] = [p.id for p in problems]
        columns |= {key: [p.info.get(key) for p in problems] for p in problems for key in p.info}
        columns["completions"] = list(completions)
        if any(p.kind is p.VAR_KEYWORD for p in self._parameters.values()):
            return columns
        return {name: column for name, column in columns.items() if name in self._parameters}


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C have none
        return {}


async def _wait_for(result: Awaitable[Any]) -> Any:
    return await result


def _outcome(result: object) -> Outcome:
    try:
        return Outcome(check_reward(result))
    except (TypeError, ValueError) as error:
        return Outcome(None, one_line_error(error))


def check_reward(result: object) -> Reward:
    """The reward with a finite value and a strict verdict. Raises TypeError and ValueError."""
    reward = result if isinstance(result, Reward) else Reward(_finite_number(result))
    value = _finite_number(reward.value)
    right = value >= RIGHT
    strict = _plain(reward.strict) or Verdict(right, None, "right" if right else f"reward {value:g}")
    return Reward(value, strict, _plain(reward.lenient))


def _plain(verdict: Verdict | None) -> Verdict | None:
    """The verdict with a bool of Python's own: numpy's can't be written as JSON, and "no" would be true."""
    if verdict is None:
        return None
    if not isinstance(verdict, Verdict):
        raise TypeError(f"the reward has the verdict {verdict!r:.60}, not a reinforce_lite.Verdict")
    correct = _scalar(verdict.correct)
    if not isinstance(correct, int | float) or correct not in (0, 1):
        raise TypeError(f"a verdict of the reward has correct={correct!r:.60}, not True or False")
    return replace(verdict, correct=bool(correct))


def _scalar(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def _finite_number(value: Any) -> float:
    value = float(value) if isinstance(value, Decimal) else _scalar(value)
    if not isinstance(value, int | float | Fraction):
        raise TypeError(f"the reward returned {type(value).__name__} {value!r:.60}, not a number")
    if not -MAX_REWARD <= value <= MAX_REWARD:  # NaN is not
        raise ValueError(f"the reward returned {value!r:.60}, which is not within ±{MAX_REWARD:g}")
    return float(value)


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON values; texts of verdicts are cut at MAX_TEXT characters."""
    if outcome.reward is None:
        return {"fault": outcome.fault}
    record = asdict(outcome.reward)
    for verdict in (record["strict"], record["lenient"]):
        if verdict:
            verdict["answer"] = None if verdict["answer"] is None else str(verdict["answer"])[:MAX_TEXT]
            verdict["reason"] = str(verdict["reason"])[:MAX_TEXT]
    return record


def outcome_from_json(record: Mapping[str, Any]) -> Outcome:
    """The inverse of `outcome_to_json`."""
    if "fault" in record:
        return Outcome(None, record["fault"])
    strict, lenient = (record[key] and Verdict(**record[key]) for key in ("strict", "lenient"))
    return Outcome(check_reward(Reward(record["value"], strict, lenient)))
