"""What `audit` prints: the reward, the ways of asking side by side, a forecast, and what to change first."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from reinforce_lite.tasks.data_audit import DataAudit
from reinforce_lite.trainer.audit import Audit
from reinforce_lite.trainer.audit_advice import Forecast
from reinforce_lite.utils.text import harmless, interval, percent

SENTENCES: dict[Forecast, str] = {
    "likely": "Training is likely to learn: {live} of the groups have a signal.",
    "slowly": "Training is likely to learn slowly: only {live} of the groups have a signal.",
    "unlikely": "Training is unlikely to learn: {live} of the groups have a signal.",
    "nothing left": "There is little to learn: {accuracy} of the untrained model's completions are right.",
}


def show_audit(found: Audit) -> None:
    """Print it."""
    console = Console(highlight=False, markup=False)
    for line in _data_lines(found.data):
        console.print(harmless(line), soft_wrap=True)
    if not found.ways:
        return
    table = Table(title="training questions", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("untrained", min_width=9)
    for name in ("asked", "pass@1", "pass@G", "live groups", "format\nmissed", "cut at\nlimit", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)  # only the way's name gives way
    for s in found.ways:
        live = f"{percent(s.live, 0)} {interval(s.live_interval)}"
        shares = (
            percent(s.accuracy),
            percent(s.solved, 0),
            live,
            percent(s.format_failures),
            percent(s.truncated, 0),
        )
        table.add_row(harmless(s.way.name), str(s.questions), *shares, f"{s.mean_tokens:.0f}")
    console.print(table)
    own = found.ways[0]
    sentence = SENTENCES[own.forecast].format(live=percent(own.live, 0), accuracy=percent(own.accuracy, 0))
    console.print(sentence, soft_wrap=True)
    for advice in found.advice:
        console.print(harmless(f"- {advice}"), soft_wrap=True)  # options must stay one line
    if sum(bool(advice.options) for advice in found.advice) > 1:
        console.print(harmless(f"all options: {found.options}"), soft_wrap=True)


def _data_lines(data: DataAudit) -> list[str]:
    name, share = data.easiest
    lines = [
        f"reward: {percent(data.golds_paid, 0)} of {data.problems} golds are graded right when written as "
        f"{data.written.format('GOLD')}; {data.milliseconds:.1f} ms a call",
        f"without solving anything, {name} earns most: right for {percent(share, 0)} of the problems",
    ]
    if data.unpaid:
        lines.insert(1, f"the first gold that is graded wrong: {data.unpaid}")
    if data.faults:
        lines.append(f"the reward failed on {data.faults} calls")
    return lines
