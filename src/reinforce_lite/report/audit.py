"""The audit that was made before the run, and its forecast next to the outcome."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reinforce_lite.report.result import count
from reinforce_lite.report.run_data import RunData
from reinforce_lite.runlog.records import Record
from reinforce_lite.utils.text import interval, percent

FORECASTS = {
    "likely": "Likely to learn",
    "slowly": "Likely to learn slowly",
    "unlikely": "Unlikely to learn",
    "nothing left": "Little left to learn",
}
FIGURES = (
    *("questions", "accuracy", "solved", "live", "live_interval"),
    *("format_failures", "truncated", "mean_tokens"),
)


def build_audit(data: RunData, result: Record) -> dict[str, Any] | None:
    """Forecast and outcome in a sentence each, the ways of asking, pass rates, advice; None without an audit.

    `pass_rates[i]` is the number of questions of whose completions i were right. Figures that another version
    did not write are None.
    """
    ways = data.audit.get("ways")
    if not ways:
        return None
    return {
        "forecast": _forecast(ways[0]),
        "outcome": _outcome(data, result),
        "ways": [{key: way.get(key) for key in ("way", *FIGURES)} for way in ways],
        "pass_rates": _pass_rates(
            data.audit.get("questions", []), data.config.get("rollout", {}).get("group_size", 0)
        ),
        "advice": data.audit.get("advice", []),
    }


def _forecast(own: Record) -> str:
    """From the figures of the recipe's way of asking."""
    words = FORECASTS.get(own.get("forecast", ""), "Unknown")
    right, live = percent(own.get("accuracy")), percent(own.get("live"), 0)
    bounds = f" {interval(own['live_interval'])}" if own.get("live_interval") else ""
    return (
        f"{words}: on {own.get('questions', '–')} training questions {right} of the untrained model's "
        f"completions are right, and {live}{bounds} of the groups have a signal."
    )


def _outcome(data: RunData, result: Record) -> str:
    """What training did by the same measure, and accuracy on the test problems."""
    asked = sum(s.questions_asked or 0 for s in data.steps)
    live = sum(s.live_groups or 0 for s in data.steps)
    before, after = result["before"], result["after"]
    outcome = "Accuracy after training is not known yet."
    if before and after:
        change = f"from {percent(before['strict'])} to {percent(after['strict'])}"
        outcome = f"Accuracy on {after['n']} test problems went {change}."
    if not asked:
        return outcome
    adaptive = data.config.get("rollout", {}).get("selection") == "adaptive"
    groups = f"{asked:,} groups chosen by adaptive selection" if adaptive else f"{asked:,} groups"
    return f"In {count(data.step, 'step')}, {percent(live / asked, 0)} of {groups} had a signal. {outcome}"


def _pass_rates(questions: Sequence[Record], group_size: int) -> list[int]:
    """Empty without questions. Of a question with other samples than a group has, the share counts: rewards
    failed, or it was asked twice.
    """
    right = Counter(round(group_size * q["right"] / q["samples"]) for q in questions if q["samples"])
    return [right[i] for i in range(group_size + 1)] if questions else []
