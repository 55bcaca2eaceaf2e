"""Several runs side by side: the settings that differ, and their accuracy on the same test problems.

Each run is compared with the first one that has a test evaluation after training, problem by problem. That
does not tell what another seed would have given: for that, compare runs of several seeds.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reinforce_lite.evaluation.statistics import chance_words, mcnemar_p_value, paired_interval
from reinforce_lite.report.eval_history import EvalHistory
from reinforce_lite.runlog.records import Record
from reinforce_lite.utils.text import shorten

MAX_SETTING = 80
"""Characters of a setting that are shown."""

TestProblem = tuple[str, str]
"""Id and question: runs of different tasks may use the same ids."""


class Compared(NamedTuple):
    """What the comparison needs of a run."""

    name: str
    config: Mapping[str, Any]
    verdicts: Mapping[TestProblem, bool]
    """Whether the last test evaluation after training found the problem's completion right, by strict."""


def final_verdicts(history: EvalHistory, step: int) -> dict[TestProblem, bool]:
    """The strict verdicts on the test problems at `step`, where the reward did not fail."""
    return {
        (key[1], history.questions[key]): by_step[step].strict
        for key, by_step in history.problems.items()
        if key[0] == "test" and step in by_step and by_step[step].scored
    }


def build_comparison(runs: Sequence[Compared]) -> Record:
    """`settings`: those that differ. `differences`: of each measured run from the first measured one."""
    measured = [run for run in runs if run.verdicts]
    return {
        "settings": differing_settings([run.config for run in runs]),
        "differences": [_difference(measured[0], run) for run in measured[1:]],
    }


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[Record]:
    """The settings, by dotted name, that are not the same in all configs, with the value of each."""
    flat = [_flatten(config) for config in configs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [(name, [settings.get(name, "") for settings in flat]) for name in names]
    return [
        {"name": name, "values": [shorten(value, MAX_SETTING) or "–" for value in values]}
        for name, values in rows
        if len(set(values)) > 1
    ]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    settings: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            settings |= _flatten(value, f"{prefix}{name}.")
        else:
            settings[prefix + name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return settings


def _difference(first: Compared, other: Compared) -> Record:
    """The change of accuracy from `first` to `other` on the problems that both were tested on."""
    common = [problem for problem in first.verdicts if problem in other.verdicts]
    before, after = ([run.verdicts[problem] for problem in common] for run in (first, other))
    record: Record = {"first": first.name, "other": other.name, "n": len(common)}
    if not common:
        return record
    p = mcnemar_p_value(before, after)
    return record | {
        "change": (sum(after) - sum(before)) / len(common),
        "interval": paired_interval(before, after),
        "only_first": sum(b and not a for b, a in zip(before, after, strict=True)),
        "only_other": sum(a and not b for b, a in zip(before, after, strict=True)),
        "p": p,
        "chance": chance_words(p),
    }
