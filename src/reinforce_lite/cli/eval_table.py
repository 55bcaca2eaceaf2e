"""What the `eval` command prints below the accuracy: pass@k, and the most common failures."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.evaluation.failures import Failure
from reinforce_lite.utils.text import interval, percent, shorten

SHOWN = 5  # reasons


def show_evaluation(result: Evaluation, failed: Sequence[Failure], console: Console | None = None) -> None:
    """Print them; a model's text is made harmless and cut short."""
    console = console or Console(highlight=False)
    if result.pass_at:
        console.print(f"strict pass@k, {result.samples} sampled answers to each problem (95% intervals)")
        console.print(_pass_at(result))
    if failed:
        console.print("why answers are wrong, with an example of each")
        console.print(_failures(failed))


def _pass_at(result: Evaluation) -> Table:
    table = Table()
    for k in result.pass_at:
        table.add_column(f"k = {k}")
    bounds = result.pass_at_interval
    table.add_row(*(f"{percent(share)} {interval(bounds[k])}" for k, share in result.pass_at.items()))
    return table


def _failures(failed: Sequence[Failure]) -> Table:
    table = Table(show_lines=True)
    for name in ("reason", "answers", "example"):
        table.add_column(name)
    for failure in failed[:SHOWN]:
        table.add_row(Text(shorten(failure.reason)), _count(failure.count, failure.share), _example(failure))
    if rest := failed[SHOWN:]:
        count = _count(sum(f.count for f in rest), sum(f.share for f in rest))
        table.add_row(f"{len(rest)} other reason{'s' if len(rest) > 1 else ''}", count, "")
    return table


def _count(count: int, share: float) -> str:
    return f"{count} ({percent(share)})"


def _example(failure: Failure) -> Text:
    text = Text(f"question: {shorten(failure.question, 160)}\n")
    text.append(f"gold:     {shorten(failure.gold, 80)}\nanswer:   {shorten(failure.completion, 200)}")
    return text
