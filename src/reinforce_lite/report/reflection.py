"""Reflection, counted: keyword hits, the untrained model's for comparison, and the accuracy with a hit.

A hit does not prove reflection. So the page shows each rate with the untrained model's on the same problems,
the accuracy with a hit and without, and excerpts to read.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.evaluation.statistics import SIGNIFICANCE, format_p, wilson_interval
from reinforce_lite.report.eval_history import EvalCompletion, EvalHistory, Pair, paired_p_value
from reinforce_lite.report.run_data import RunData
from reinforce_lite.utils.text import percent

LIST_SIGNIFICANCE = SIGNIFICANCE / len(REFLECTION_LISTS)
"""Bonferroni's correction: three lists are three chances of a false finding."""


class ReflectionTally:
    """The completions with a hit and those without, for each list."""

    def __init__(self, completions: Iterable[EvalCompletion] = (), independent: bool = True) -> None:
        self.independent = independent
        """Whether each is of a different question: those of one are too alike for Wilson's interval."""
        self.tallies: defaultdict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
        """By list and whether it has a hit: `n` completions, those `right` among them, and their `tokens`."""
        for completion in filter(lambda c: c.scored, completions):
            self.add(completion.lists, completion.strict, completion.tokens)

    def add(self, lists: Collection[str], right: bool, tokens: int) -> None:
        """Count a completion that has a hit of `lists`."""
        for name in REFLECTION_LISTS:
            tally = self.tallies[name, name in lists]
            tally["n"] += 1
            tally["right"] += right
            tally["tokens"] += tokens

    def figures(self, name: str) -> dict[str, Any]:
        """The figures of one list; `rate` is the share of completions with a hit, None without any."""
        with_hit, without = self.tallies[name, True], self.tallies[name, False]
        n = with_hit["n"] + without["n"]
        rate = with_hit["n"] / n if n else None
        return {"rate": rate, "with": self._figures(with_hit), "without": self._figures(without)}

    def _figures(self, tally: Counter[str]) -> dict[str, Any]:
        """Accuracy, its 95% interval if the completions are independent, and mean length in tokens; each None
        without completions.
        """
        n, right = tally["n"], tally["right"]
        if not n:
            return {"n": 0, "strict": None, "interval": None, "tokens": None}
        interval = wilson_interval(right, n) if self.independent else None
        return {"n": n, "strict": right / n, "interval": interval, "tokens": tally["tokens"] / n}


def build_reflection(data: RunData, history: EvalHistory, training: ReflectionTally) -> dict[str, Any]:
    """A sentence, the comparison on the same problems, and figures by list and population."""
    split, step = _last_comparison(data)
    pairs = history.pairs(split, step) if step else []
    compared = {name: _compare(pairs, name) for name in REFLECTION_LISTS} if step else {}
    last = max((e["step"] for e in data.evals), default=0)
    evaluated_last = [by_step for by_step in history.problems.values() if last in by_step]
    populations = {
        "untrained": ReflectionTally(by_step[0] for by_step in evaluated_last if 0 in by_step),
        "training": training,
        "trained": ReflectionTally(by_step[last] for by_step in evaluated_last if last > 0),
    }
    return {
        "sentence": _sentence(compared, split, step, len(pairs)),
        "split": split,
        "step": step,
        "compared": compared,
        "lists": {
            name: {who: tally.figures(name) for who, tally in populations.items()}
            for name in REFLECTION_LISTS
        },
        "words": REFLECTION_LISTS,
    }


def _last_comparison(data: RunData) -> tuple[str, int]:
    """The split and step to compare with the untrained model: the last test, or else the last validation."""
    for split in ("test", "validation"):
        steps = [e["step"] for e in data.evals if e["split"] == split]
        if 0 in steps and steps[-1] > 0:
            return split, int(steps[-1])
    return "test", 0


def _compare(pairs: Sequence[Pair], name: str) -> dict[str, Any]:
    """The shares of completions with a hit of a list before and after, and the p-value of the change."""
    n = max(1, len(pairs))
    return {
        "before": sum(name in before.lists for before, _ in pairs) / n,
        "after": sum(name in after.lists for _, after in pairs) / n,
        "p": paired_p_value(pairs, name),
    }


def _sentence(compared: dict[str, Any], split: str, step: int, n: int) -> str:
    if not n:
        return "No comparison yet: it needs a second evaluation, after some training."
    if all(c["before"] == c["after"] == 0 for c in compared.values()):
        return f"No reflection words before or after training, in the completions of {n} {split} problems."
    changed = {name: c for name, c in compared.items() if c["p"] < LIST_SIGNIFICANCE}
    more = [name for name, c in changed.items() if c["after"] > c["before"]]
    lists = [name.upper() for name in more or changed]
    where = f"on the same {n} {split} problems at step {step}"
    figures = "; ".join(_figures(name, c) for name, c in compared.items())
    if not changed:
        return f"No change in reflection words beyond chance, {where}: {figures}."
    return (
        f"{'More' if more else 'Fewer'} reflection words than before training, {where}, by "
        f"list{'s' if len(lists) > 1 else ''} {' and '.join(lists)}: {figures}."
    )


def _figures(name: str, compared: dict[str, Any]) -> str:
    change = f"{percent(compared['before'])} → {percent(compared['after'])}"
    return f"list {name.upper()} {change} of completions ({format_p(compared['p'])})"
