"""What a person sees while a run goes on: a live display in a terminal, plain lines elsewhere.

Completions are a model's text and may hold anything; they are shown with control characters made
visible, so that no answer can move the cursor or colour the screen.
"""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from reinforce_lite.callbacks.base import Callback
from reinforce_lite.config import Config
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.runlog.health import find_warnings
from reinforce_lite.runlog.run import Line, Run
from reinforce_lite.types import Group, Rollout
from reinforce_lite.utils.text import duration, harmless, interval, percent, shorten, sparkline

EXAMPLE_EVERY = 5  # steps between examples
PROGRESS_EVERY = 15.0  # seconds between lines about a long phase


class LineConsole(Callback):
    """A line a step, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps = 0
        self.numbers: list[Line] = []
        self.told: set[str] = set()
        self.phase("", 0)

    def started(self, config: Config, run: Run, step: int, device: str, left: Callable[[], float]) -> None:
        self.steps, self.left, self.numbers = config.train.steps, left, run.steps
        self._say(_headline(config, run, step, device))

    def phase(self, name: str, total: int) -> None:
        self.now, self.total, self.done, self.said = name, total, 0, time.monotonic()

    def advance(self, finished: int) -> None:
        self.done += finished
        if finished and time.monotonic() - self.said >= PROGRESS_EVERY:
            self.said = time.monotonic()
            self._say(f"  {self.now}: {self.done}/{self.total}")

    def stepped(self, line: Line, groups: Sequence[Group]) -> None:
        self._say(
            f"step {line['step']}/{self.steps}  reward {line['reward']:.2f}  "
            f"strict {percent(line['accuracy/strict'])}  {_second(line)}  "
            f"length {line['completions/mean_length']:.0f}  equal groups {line['frac_reward_zero_std']:.0%}  "
            f"{line['step_time']:.1f} s  ends in {duration(self.left())}"
            + ("" if line["updated"] else f"  {_why_not(line)}")
        )
        if line["step"] % EXAMPLE_EVERY == 1 and (pair := right_and_wrong(groups)):
            self._say(f"  question: {shorten(pair[0].problem.question)}")
            self._say(f"  right:    {shorten(pair[1].response)}")
            self._say(f"  wrong:    {shorten(pair[2].response)}  ({pair[2].strict.reason})")
        self.numbers.append(line)
        for kind, words in find_warnings(self.numbers).items():
            if kind not in self.told:
                self.told.add(kind)
                self._say(f"  warning: {words}")

    def evaluated(self, result: Evaluation) -> None:
        self._say(_evaluation_text(result))

    def finished(self, run: Run) -> None:
        self.console.print(final_summary(run))

    def _say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


class LiveConsole(Callback):
    """A display that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:>24}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.steps = self.bars.add_task("steps", total=1, note="", visible=False)
        self.now = self.bars.add_task("starting", total=None, note="")
        self.head: RenderableType = ""
        self.numbers: list[Line] = []
        self.warnings: list[str] = []
        self.evaluations: list[Evaluation] = []
        self.example: RenderableType = ""
        self.live = Live(console=console, get_renderable=self._draw, refresh_per_second=4)

    def __enter__(self) -> "LiveConsole":
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def started(self, config: Config, run: Run, step: int, device: str, left: Callable[[], float]) -> None:
        self.left = left
        self.head = Text(_headline(config, run, step, device), style="bold")
        self.bars.update(self.steps, total=config.train.steps, completed=step, visible=True)
        self.numbers = run.steps

    def phase(self, name: str, total: int) -> None:
        self.bars.remove_task(self.now)
        self.now = self.bars.add_task(name, total=total or None, note="")

    def advance(self, finished: int) -> None:
        self.bars.advance(self.now, finished)
        task = self.bars.tasks[1]
        if task.elapsed:
            self.bars.update(self.now, note=f"{task.completed / task.elapsed:.1f} answers a second")

    def stepped(self, line: Line, groups: Sequence[Group]) -> None:
        self.numbers.append(line)
        self.warnings = list(find_warnings(self.numbers).values())
        self.bars.update(self.steps, completed=line["step"], note=f"ends in {duration(self.left())}")
        if line["step"] % EXAMPLE_EVERY == 1 and (pair := right_and_wrong(groups)):
            self.example = _example_panel(*pair)

    def evaluated(self, result: Evaluation) -> None:
        self.evaluations.append(result)

    def finished(self, run: Run) -> None:
        self.bars.update(self.now, visible=False)
        self.live.stop()
        self.console.print(final_summary(run))

    def _draw(self) -> RenderableType:
        parts = [self.head, self.bars]
        if self.numbers:
            parts.append(self._table())
        parts += [_warning(words) for words in self.warnings]
        parts += [Text(_evaluation_text(e)) for e in self.evaluations[-3:]]
        return Stack(*parts, self.example)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        last = self.numbers[-1]
        rows = [("reward", "reward"), ("strict", "accuracy/strict"), ("lenient", "accuracy/lenient")]
        if last["accuracy/lenient"] is None:
            rows[-1] = ("second opinion", "accuracy/second_opinion")
        for label, key in rows:
            values = [line[key] for line in self.numbers if line.get(key) is not None]
            if values:
                table.add_row(f"{label:>24}", f"{values[-1]:.2f}", Text(sparkline(values), style="green"))
        length = f"{last['completions/mean_length']:.0f} tokens"
        equal = f"{last['frac_reward_zero_std']:.0%} of questions teach nothing"
        table.add_row(f"{'answers':>24}", length, f"{equal}; {last['step_time']:.1f} s a step")
        if not last["updated"]:
            table.add_row("", "", _why_not(last))
        return table


def make_console(json: bool = False) -> Callback:
    """The screen that fits where the output goes; with `json` it keeps off standard output."""
    console = Console(stderr=json, highlight=False)
    return LiveConsole(console) if console.is_terminal else LineConsole(console)


def final_summary(run: Run) -> RenderableType:
    """The before/after table and where everything is."""
    summary = run.summary
    parts: list[RenderableType] = []
    evals = summary["evals"]
    if "after" in evals:
        parts.append(before_after_table(evals))
    parts += [_warning(words) for words in summary.get("warnings", [])]
    places = Table.grid(padding=(0, 2))
    if (report := run.path / "report.html").exists():
        places.add_row("report", f"{report} (open it in a browser)")
    places.add_row("model", str(run.path / "model"))
    if (run.path / "best").is_dir():
        places.add_row("best on validation", f"{run.path / 'best'} (step {summary['best_step']})")
    elif summary["best_step"] == 0 and summary["steps"]:
        places.add_row("note", "on validation no step was better than the untrained model")
    places.add_row("every answer", str(run.path / "rollouts.jsonl"))
    places.add_row("try it", f'reinforce-lite ask {run.name} "question"')
    places.add_row("took", duration(summary["seconds"]))
    if summary["stopped"] == "hours":
        done = f"{summary['steps']} of {run.config.train.steps} steps"
        places.add_row("ended", f"after {done}: no other fitted into its hours")
        places.add_row("", f"go on with: reinforce-lite train --run {run.name} --resume --train.hours …")
    return Stack(*parts, places)


def before_after_table(evals: dict[str, Any]) -> Table:
    """Accuracy before and after on the same test problems, with intervals and significance."""
    n = evals["after"]["n"]
    table = Table(
        title=f"accuracy on {n} test problems never trained on (95% intervals)", title_justify="left"
    )
    for name in ("", "before", "after", "change"):
        table.add_column(name)
    second = "lenient" if evals["after"]["lenient"] is not None else "second_opinion"
    for kind in ("strict", second):
        before, after = evals["before"].get(kind), evals["after"].get(kind)
        if before is None or after is None:
            continue
        p = evals["paired_p"][kind]
        real = "" if p is None else f" ({'significant' if p < 0.05 else 'not significant'}, p = {p:.2g})"
        cells = [_with_interval(evals[when], kind) for when in ("before", "after")]
        table.add_row(kind.replace("_", " "), *cells, f"{100 * (after - before):+.1f} points{real}")
    return table


def right_and_wrong(groups: Sequence[Group]) -> tuple[Group, Rollout, Rollout] | None:
    """A question with a right and a wrong answer to it, the first there is."""
    for group in groups:
        right = next((r for r in group.rollouts if r.strict.correct), None)
        wrong = next((r for r in group.rollouts if not r.strict.correct), None)
        if right and wrong:
            return group, right, wrong
    return None


def _example_panel(group: Group, right: Rollout, wrong: Rollout) -> Panel:
    text = Text(harmless(group.problem.question).strip() + "\n")
    text.append(f"\n✓ {shorten(right.response)}", style="green")
    text.append(f"\n✗ {shorten(wrong.response)}  ({wrong.strict.reason})", style="red")
    return Panel(text, title="one question, two answers", title_align="left", width=100)


def _headline(config: Config, run: Run, step: int, device: str) -> str:
    level = f" level {config.task.level}" if config.task.name == "wordmath" else ""
    again = f", going on after step {step}" if step else ""
    return f"{config.model.name} on {config.task.name}{level}, {device}, into {run.path}{again}"


def _evaluation_text(e: Evaluation) -> str:
    when = "" if e.step is None else f"step {e.step}: "
    text = f"{when}{e.split} strict {percent(e.strict)} {interval(e.strict_interval)}"
    if e.lenient is not None and e.lenient_interval is not None:
        text += f", lenient {percent(e.lenient)} {interval(e.lenient_interval)}"
    elif e.second_opinion is not None and e.second_opinion_interval is not None:
        text += f", second opinion {percent(e.second_opinion)} {interval(e.second_opinion_interval)}"
    return f"{text}, n = {e.n}"


def _second(line: Line) -> str:
    """The verdict that is not paid: lenient where the task has one."""
    if line["accuracy/lenient"] is None and line.get("accuracy/second_opinion") is not None:
        return f"second opinion {percent(line['accuracy/second_opinion'])}"
    return f"lenient {percent(line['accuracy/lenient'])}"


def _warning(words: str) -> Text:
    return Text(f"warning: {words}", style="yellow")


def _why_not(line: Line) -> str:
    if line["frac_reward_zero_std"] == 1:
        return "no update: in every group all answers earned the same"
    return "no update: nothing to learn from" if line["grad_norm"] == 0 else "no update: gradient not finite"


def _with_interval(line: Line, kind: str) -> str:
    return f"{percent(line[kind])} {interval(line[f'{kind}_interval'])}"
