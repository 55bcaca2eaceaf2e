"""What the `eval` command prints after the accuracy: pass@k, and the most common failures."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.evaluation.failures import Failure
from reinforce_lite.utils.text import interval, percent, shorten

MAX_REASONS = 5
"""Reasons with a row of their own."""


def show_evaluation(result: Evaluation, failures: Sequence[Failure], console: Console | None = None) -> None:
    """Print both tables; the texts of a model are escaped and shortened."""
    console = console or Console(highlight=False)
    if result.pass_at:
        console.print(f"strict pass@k from {result.samples} sampled completions per problem (95% intervals)")
        console.print(_pass_at_table(result))
    if failures:
        console.print("why completions fail, with an example of each reason")
        console.print(_failure_table(failures))


def _pass_at_table(result: Evaluation) -> Table:
    table = Table("k", "pass@k", "interval")
    for k, share in result.pass_at.items():
        table.add_row(str(k), percent(share), interval(result.pass_at_interval[k]))
    return table


def _failure_table(failures: Sequence[Failure]) -> Table:
    table = Table("reason", "completions", show_lines=True)
    table.columns[0].max_width = 24
    table.add_column("example", overflow="fold")
    for failure in failures[:MAX_REASONS]:
        count = _count(failure.count, failure.share)
        table.add_row(Text(shorten(failure.reason)), count, _example(failure))
    if rest := failures[MAX_REASONS:]:
        count = _count(sum(f.count for f in rest), sum(f.share for f in rest))
        table.add_row(f"{len(rest)} other reason{'s' if len(rest) > 1 else ''}", count, "")
    return table


def _count(count: int, share: float) -> str:
    return f"{count} ({percent(share)})"


def _example(failure: Failure) -> Text:
    return Text(
        f"question: {shorten(failure.question, 160)}\n"
        f"gold: {shorten(failure.gold, 80)}\n"
        f"completion: {shorten(failure.completion, 200)}"
    )
