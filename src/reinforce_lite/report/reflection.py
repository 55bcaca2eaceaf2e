"""Reflection, counted: keyword hits, the untrained model's for comparison, and the accuracy with a hit.

A hit does not prove reflection. So the page shows each rate with the untrained model's on the same problems,
the accuracy with a hit and without, and excerpts to read.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.evaluation.statistics import wilson_interval
from reinforce_lite.report.eval_history import EvalHistory
from reinforce_lite.report.result import format_p
from reinforce_lite.report.run_data import RunData
from reinforce_lite.utils.text import percent

SIGNIFICANCE = 0.05 / len(REFLECTION_LISTS)
"""Bonferroni's correction: three lists are three chances of a false finding."""


@dataclass(slots=True)
class Tally:
    """A number of completions: all, the right ones, and their tokens."""

    n: int = 0
    right: int = 0
    tokens: int = 0

    def add(self, right: bool, tokens: int) -> None:
        """Count a completion."""
        self.n += 1
        self.right += right
        self.tokens += tokens

    def figures(self) -> dict[str, Any]:
        """Accuracy with its 95% interval, and mean length in tokens; None without completions."""
        if not self.n:
            return {"n": 0, "strict": None, "interval": None, "tokens": None}
        return {
            "n": self.n,
            "strict": self.right / self.n,
            "interval": wilson_interval(self.right, self.n),
            "tokens": self.tokens / self.n,
        }


@dataclass(slots=True)
class ReflectionTally:
    """The completions with a hit and those without, for each list."""

    with_hit: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in REFLECTION_LISTS})
    without: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in REFLECTION_LISTS})

    def add(self, lists: Collection[str], right: bool, tokens: int) -> None:
        """Count a completion that has a hit of `lists`."""
        for name in REFLECTION_LISTS:
            (self.with_hit if name in lists else self.without)[name].add(right, tokens)

    def figures(self, name: str) -> dict[str, Any]:
        """The figures of one list; `rate` is the share of completions with a hit, None without any."""
        with_hit, without = self.with_hit[name], self.without[name]
        n = with_hit.n + without.n
        rate = with_hit.n / n if n else None
        return {"rate": rate, "with": with_hit.figures(), "without": without.figures()}


def build_reflection(
    data: RunData, history: EvalHistory, populations: dict[str, ReflectionTally]
) -> dict[str, Any]:
    """A sentence, the comparison on the same problems, and figures by list and population."""
    split, step = _last_comparison(data)
    compared = {name: _compare(history, split, step, name) for name in REFLECTION_LISTS} if step else {}
    return {
        "sentence": _sentence(compared, split, step, history.count_pairs(split, step) if step else 0),
        "split": split,
        "step": step,
        "compared": compared,
        "lists": {
            name: {who: tally.figures(name) for who, tally in populations.items()}
            for name in REFLECTION_LISTS
        },
        "words": {name: list(words) for name, words in REFLECTION_LISTS.items()},
    }


def _last_comparison(data: RunData) -> tuple[str, int]:
    """The split and step to compare with the untrained model: the last test, or else the last validation."""
    for split in ("test", "validation"):
        steps = [e["step"] for e in data.evals if e["split"] == split]
        if 0 in steps and steps[-1] > 0:
            return split, int(steps[-1])
    return "test", 0


def _compare(history: EvalHistory, split: str, step: int, name: str) -> dict[str, Any]:
    before, after = history.reflection_rates(split, step, name)
    return {"before": before, "after": after, "p": history.paired_p_value(split, step, name)}


def _sentence(compared: dict[str, Any], split: str, step: int, n: int) -> str:
    if not n:
        return "No comparison yet: it needs a second evaluation, after some training."
    if all(c["before"] == c["after"] == 0 for c in compared.values()):
        return f"No reflection words before or after training, in the completions of {n} {split} problems."
    changed = {name: c for name, c in compared.items() if c["p"] is not None and c["p"] < SIGNIFICANCE}
    more = [name for name, c in changed.items() if c["after"] > c["before"]]
    fewer = [name for name in changed if name not in more]
    where = f"on the same {n} {split} problems at step {step}"
    figures = "; ".join(_figures(name, c) for name, c in compared.items())
    if more:
        verdict = f"More reflection words than before training, {where}, by {_lists(more)}"
    elif fewer:
        verdict = f"Fewer reflection words than before training, {where}, by {_lists(fewer)}"
    else:
        verdict = f"No change in reflection words beyond chance, {where}"
    return f"{verdict}: {figures}."


def _figures(name: str, compared: dict[str, Any]) -> str:
    p = "" if compared["p"] is None else f" ({format_p(compared['p'])})"
    change = f"{percent(compared['before'])} → {percent(compared['after'])}"
    return f"list {name.upper()} {change} of completions{p}"


def _lists(names: list[str]) -> str:
    return ("list " if len(names) == 1 else "lists ") + " and ".join(name.upper() for name in names)
