"""The aha moment, counted: keyword hits beside the untrained model's, and what they are worth.

A hit is no proof of reflection, so a rate stands beside the control's on the same problems, accuracy with a
hit beside accuracy without, and excerpts are there to be read.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.evaluation.statistics import wilson_interval
from reinforce_lite.report.eval_history import EvalHistory
from reinforce_lite.report.result import p_value
from reinforce_lite.report.run_data import Files
from reinforce_lite.utils.text import percent

BEYOND_CHANCE = 0.05 / len(REFLECTION_LISTS)  # three lists are three chances to find something (Bonferroni)


@dataclass(slots=True)
class Tally:
    """Answers counted: how many, how many right, how long in all."""

    n: int = 0
    right: int = 0
    tokens: int = 0

    def add(self, right: bool, tokens: int) -> None:
        self.n += 1
        self.right += right
        self.tokens += tokens

    def figures(self) -> dict[str, Any]:
        """Accuracy with its 95% interval and mean length; None where nothing was counted."""
        if not self.n:
            return {"n": 0, "strict": None, "interval": None, "tokens": None}
        interval = wilson_interval(self.right, self.n)
        return {
            "n": self.n,
            "strict": self.right / self.n,
            "interval": interval,
            "tokens": self.tokens / self.n,
        }


@dataclass(slots=True)
class Hits:
    """For each list the answers with a hit and those without."""

    with_hit: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in REFLECTION_LISTS})
    without: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in REFLECTION_LISTS})

    def add(self, lists: Collection[str], right: bool, tokens: int) -> None:
        """Count an answer with a hit of these lists."""
        for name in REFLECTION_LISTS:
            (self.with_hit if name in lists else self.without)[name].add(right, tokens)

    def rate(self, name: str) -> float | None:
        """The share of answers with a hit; None where there are no answers."""
        n, m = self.with_hit[name].n, self.without[name].n
        return n / (n + m) if n + m else None

    def figures(self, name: str) -> dict[str, Any]:
        """One list's."""
        return {
            "rate": self.rate(name),
            "with": self.with_hit[name].figures(),
            "without": self.without[name].figures(),
        }


def build_reflection(files: Files, asked: EvalHistory, populations: dict[str, Hits]) -> dict[str, Any]:
    """Sentence, comparison on the same problems, figures by list and population."""
    split, step = _compared(files)
    compared = {name: _compare(asked, split, step, name) for name in REFLECTION_LISTS} if step else {}
    return {
        "sentence": _sentence(compared, split, step, asked.size(split, step) if step else 0),
        "split": split,
        "step": step,
        "compared": compared,
        "lists": {
            name: {who: hits.figures(name) for who, hits in populations.items()} for name in REFLECTION_LISTS
        },
        "words": {name: list(words) for name, words in REFLECTION_LISTS.items()},
    }


def _compared(files: Files) -> tuple[str, int]:
    """The split and step that the untrained model is compared with: the last test, or else validation."""
    for split in ("test", "validation"):
        steps = [e["step"] for e in files.evals if e["split"] == split]
        if 0 in steps and steps[-1] > 0:
            return split, int(steps[-1])
    return "test", 0


def _compare(asked: EvalHistory, split: str, step: int, name: str) -> dict[str, Any]:
    before, after = asked.shares(split, step, name)
    return {"before": before, "after": after, "p": asked.paired_p(split, step, name)}


def _sentence(compared: dict[str, Any], split: str, step: int, n: int) -> str:
    if not n:
        return (
            "Whether there is more reflection than before training shows in the second evaluation, to come."
        )
    if all(c["before"] == c["after"] == 0 for c in compared.values()):
        return f"No reflection words, before training or after it, in the answers to {n} {split} problems."
    real = {name: c for name, c in compared.items() if c["p"] is not None and c["p"] < BEYOND_CHANCE}
    more = [name for name, c in real.items() if c["after"] > c["before"]]
    fewer = [name for name in real if name not in more]
    where = f"on the same {n} {split} problems at step {step}"
    figures = "; ".join(_figures(name, c) for name, c in compared.items())
    if more:
        verdict = f"More reflection words than before training, {where}, by {_lists(more)}"
    elif fewer:
        verdict = f"Fewer reflection words than before training, {where}, by {_lists(fewer)}"
    else:
        verdict = f"No change in reflection words that chance does not explain, {where}"
    return f"{verdict}: {figures}."


def _figures(name: str, found: dict[str, Any]) -> str:
    p = "" if found["p"] is None else f" ({p_value(found['p'])})"
    return f"list {name.upper()} {percent(found['before'])} → {percent(found['after'])} of answers{p}"


def _lists(names: list[str]) -> str:
    return ("list " if len(names) == 1 else "lists ") + " and ".join(name.upper() for name in names)
