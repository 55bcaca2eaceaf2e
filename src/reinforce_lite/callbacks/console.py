"""What a person sees during a run: a live display in a terminal or a notebook, plain lines elsewhere.

Every phase says what it does when it starts; in a terminal or a log none stays silent for longer than
HEARTBEAT seconds. Completions are a model's text and may hold anything: control characters are made visible,
so that no completion can move the cursor or colour the screen.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from io import StringIO
from math import isnan
from typing import Self, TextIO, cast

from rich import progress
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.jupyter import JUPYTER_HTML_FORMAT, JupyterRenderable
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reinforce_lite.callbacks.base import SAMPLING, UPDATING, Callback
from reinforce_lite.callbacks.final_summary import final_summary, next_commands
from reinforce_lite.config import Config
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.evaluation.statistics import control_verdict
from reinforce_lite.runlog.health import SHOW_FORMAT, find_warnings
from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.runlog.run import Run
from reinforce_lite.types import Group, Rollout
from reinforce_lite.utils import clock
from reinforce_lite.utils.streams import LastingStream
from reinforce_lite.utils.text import duration, harmless, interval, percent, shorten, sparkline

EXAMPLE_EVERY = 5  # steps between examples
HEARTBEAT = 10.0  # seconds without a line before one about the current phase
REDRAW = 0.5  # seconds between two drawings of a phase in a notebook


class LineConsole(Callback):
    """Plain lines, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.history: list[StepMetrics] = []
        self.warned: set[str] = set()
        self.phase_name, self.total, self.done = "", 0, 0
        self.phase_start = self.last_line = clock.now()
        self.slow_steps = True  # until one was measured
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._stop.clear()
        threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()

    def started(self, config: Config, run: Run, step: int, device: str, eta: Callable[[], float]) -> None:
        self.total_steps, self.eta, self.history = config.train.steps, eta, run.step_metrics
        self._print(_headline(config, run, step, device))

    def phase(self, name: str, total: int = 0) -> None:
        self.phase_name, self.total, self.done, self.phase_start = name, total, 0, clock.now()
        if self.slow_steps or name not in (SAMPLING, UPDATING):
            self._print(f"  {name}{f' ({total} completions)' if total else ''} ...")

    def advance(self, finished: int) -> None:
        self.done += finished
        self.beat()

    def beat(self) -> None:
        """Print a line about the current phase if nothing was printed for HEARTBEAT seconds."""
        if self.phase_name and clock.now() - self.last_line >= HEARTBEAT:
            count = f"{self.done} of {self.total} completions, " if self.total else ""
            self._print(f"  {self.phase_name}: {count}{duration(clock.now() - self.phase_start)}")

    def stepped(self, metrics: StepMetrics, groups: Sequence[Group]) -> None:
        self.phase_name = ""
        self.history = with_step(self.history, metrics)
        self.slow_steps = metrics.step_time >= HEARTBEAT
        self._print(
            f"step {metrics.step}/{self.total_steps}  reward {metrics.reward:.2f}  "
            f"strict {percent(metrics.strict)}  {_unpaid(metrics)}  "
            f"length {metrics.mean_length:.0f}  {_taught(metrics)}  "
            f"{metrics.step_time:.1f} s  {_eta(self.eta())}"
            + ("" if metrics.updated else f"  {_why_not(metrics)}")
            + (f"  loss scale {metrics.loss_scale:,.0f}" if metrics.loss_scale else "")
        )
        if metrics.reward_faults:
            self._print(f"  {_faults(metrics, groups)}")
        if metrics.step % EXAMPLE_EVERY == 1 and (pair := right_and_wrong(groups)):
            self._print(f"  question: {shorten(pair[0].problem.question)}")
            self._print(f"  right:    {shorten(pair[1].response)}")
            self._print(f"  wrong:    {shorten(pair[2].response)}  ({shorten(pair[2].strict.reason)})")
        for kind, text in find_warnings(self.history).items():
            if kind not in self.warned:
                self.warned.add(kind)
                self._print(f"  warning: {text}")

    def evaluated(self, result: Evaluation) -> None:
        self.phase_name = ""
        self._print(_evaluation_text(result))

    def finished(self, run: Run) -> None:
        self.phase_name = ""
        with self.console.capture() as captured:
            self.console.print(final_summary(run))
        for line in captured.get().splitlines():
            self._print(line.rstrip())  # rich pads the rows of a table
        self.console.print(next_commands(run), soft_wrap=True)

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self.beat()

    def _print(self, text: str) -> None:
        self.last_line = clock.now()
        self.console.print(_text(text), soft_wrap=True)


class _CountColumn(progress.MofNCompleteColumn):
    """Finished and total, of a phase that has a total."""

    def render(self, task: progress.Task) -> Text:
        return super().render(task) if task.total else Text()


class LiveConsole(Callback):
    """A display that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description:>32}", markup=False),
            progress.BarColumn(bar_width=24),
            _CountColumn(),
            progress.TextColumn("elapsed"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.steps = self.bars.add_task("steps", total=1, note="", visible=False)
        self.current = self.bars.add_task("starting", total=None, note="")
        self.head: RenderableType = ""
        self.history: list[StepMetrics] = []
        self.warnings: list[str] = []
        self.evaluations: list[Evaluation] = []
        self.example: RenderableType = ""
        self.faults = ""
        self.live = Live(console=console, get_renderable=self._draw, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.bars.update(self.current, visible=False)
        self.live.stop()

    def started(self, config: Config, run: Run, step: int, device: str, eta: Callable[[], float]) -> None:
        self.eta = eta
        self.head = _text(_headline(config, run, step, device), style="bold")
        self.bars.update(self.steps, total=config.train.steps, completed=step, visible=True)
        self.history = run.step_metrics

    def phase(self, name: str, total: int = 0) -> None:
        self.bars.remove_task(self.current)
        self.current = self.bars.add_task(harmless(name), total=total or None, note="")
        if name not in (SAMPLING, UPDATING):
            self.bars.update(self.steps, note="")  # the ETA that the last step told is no longer true

    def advance(self, finished: int) -> None:
        self.bars.advance(self.current, finished)
        task = self.bars.tasks[1]
        if task.elapsed and task.completed > 0:
            self.bars.update(self.current, note=f"{task.completed / task.elapsed:.2f} per second")

    def stepped(self, metrics: StepMetrics, groups: Sequence[Group]) -> None:
        self.history = with_step(self.history, metrics)
        self.faults = _faults(metrics, groups)
        self.warnings = list(find_warnings(self.history).values())
        self.bars.update(self.steps, completed=metrics.step, note=_eta(self.eta()))
        if metrics.step % EXAMPLE_EVERY == 1 and (pair := right_and_wrong(groups)):
            self.example = _example_panel(*pair)

    def evaluated(self, result: Evaluation) -> None:
        self.evaluations.append(result)

    def finished(self, run: Run) -> None:
        self.__exit__()
        self.console.print(final_summary(run))
        self.console.print(next_commands(run), soft_wrap=True)

    def _draw(self) -> RenderableType:
        parts = [self.head, self.bars]
        if self.history:
            parts.append(self._table())
        parts += [_text(f"warning: {text}", style="yellow") for text in self.warnings]
        parts += [_text(_evaluation_text(e)) for e in self.evaluations[-3:]]
        return Stack(*parts, self.example)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        last = self.history[-1]
        rows = [("reward", [s.reward for s in self.history]), ("strict", [s.strict for s in self.history])]
        control = control_verdict(last.lenient)
        if opinions := [opinion for s in self.history if (opinion := getattr(s, control)) is not None]:
            rows.append((control.replace("_", " "), opinions))
        for label, values in rows:
            table.add_row(f"{label:>32}", f"{values[-1]:.2f}", Text(sparkline(values), style="green"))
        meaning = "only right completions teach" if last.warm_start else "all rewards of a group are equal"
        step = f"{_taught(last)} ({meaning}); {last.step_time:.1f} s a step"
        table.add_row(f"{'completions':>32}", f"{last.mean_length:.0f} tokens", step)
        if last.loss_scale:
            table.add_row(f"{'loss scale':>32}", f"{last.loss_scale:,.0f}", "halved where float16 overflows")
        if not last.updated:
            table.add_row("", "", _why_not(last))
        if self.faults:
            table.add_row("", "", Text(self.faults))
        return table


class NotebookConsole(LiveConsole):
    """The same display as one output of a notebook's cell, drawn again when something happens.

    IPython replaces an output by itself, where rich's `Live` needs ipywidgets.
    """

    def __enter__(self) -> Self:
        from IPython.display import display

        self.output = display(self._snapshot(), display_id=True)
        self.drawn = clock.now()
        return self

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self._redraw()

    def phase(self, name: str, total: int = 0) -> None:
        super().phase(name, total)
        self._redraw()

    def advance(self, finished: int) -> None:
        super().advance(finished)
        if clock.now() - self.drawn >= REDRAW:
            self._redraw()

    def _redraw(self) -> None:
        self.output.update(self._snapshot())
        self.drawn = clock.now()

    def _snapshot(self) -> JupyterRenderable:
        paper = Console(file=StringIO(), record=True, width=self.console.width, force_jupyter=False)
        paper.print(self._draw())
        text = paper.export_text(clear=False)
        return JupyterRenderable(paper.export_html(inline_styles=True, code_format=JUPYTER_HTML_FORMAT), text)


def _faults(metrics: StepMetrics, groups: Sequence[Group]) -> str:
    """How often the reward failed in a step, and why it did first; empty where it did not."""
    reasons = [rollout.fault for group in groups for rollout in group.rollouts if rollout.fault]
    return f"the reward failed {metrics.reward_faults} times, first: {shorten(reasons[0])}" if reasons else ""


def _text(text: str, style: str = "") -> Text:
    """Any text, made harmless: names, reasons and paths are written by others too."""
    return Text(harmless(text), style=style)


def make_console(json: bool = False) -> Callback:
    """The console that fits the output; with `json` it stays off standard output.

    An output that is lost does not end a run.
    """
    stream = sys.stderr if json else sys.stdout
    lasting = cast("TextIO", LastingStream(stream)) if stream else None  # None: it was closed from the start
    console = Console(file=lasting, stderr=json, highlight=False, markup=False)
    if console.is_jupyter:
        return NotebookConsole(console)
    return LiveConsole(console) if console.is_terminal else LineConsole(console)


def with_step(history: Sequence[StepMetrics], metrics: StepMetrics) -> list[StepMetrics]:
    """The history with a new step in it, and without steps that the run has gone back over."""
    return [*(step for step in history if step.step < metrics.step), metrics]


def right_and_wrong(groups: Sequence[Group]) -> tuple[Group, Rollout, Rollout] | None:
    """The first group with a right and a wrong completion, and these two."""
    for group in groups:
        right = next((r for r in group.rollouts if r.strict.correct), None)
        wrong = next((r for r in group.rollouts if not r.strict.correct and not r.fault), None)
        if right and wrong:
            return group, right, wrong
    return None


def _example_panel(group: Group, right: Rollout, wrong: Rollout) -> Panel:
    text = _text(group.problem.question.strip() + "\n")
    text.append(f"\n✓ {shorten(right.response)}", style="green")
    text.append(f"\n✗ {shorten(wrong.response)}  ({shorten(wrong.strict.reason)})", style="red")
    return Panel(text, title="one question, two completions", title_align="left", width=100)


def _headline(config: Config, run: Run, step: int, device: str) -> str:
    level = f" level {config.task.level}" if config.task.name == "wordmath" else ""
    resumed = f", resumed after step {step}" if step else "; the first step tells how long that takes"
    task, steps = f"{config.task.name}{level}", f"{config.train.steps} steps"
    return f"training {config.model.name} on {task}, {device}, into {run.path}: {steps}{resumed}"


def _evaluation_text(e: Evaluation) -> str:
    when = "" if e.step is None else f"step {e.step}: "
    text = f"{when}{e.split} strict {percent(e.strict)} {interval(e.strict_interval)}"
    control = control_verdict(e.lenient)
    if bounds := getattr(e, f"{control}_interval"):
        text += f", {control.replace('_', ' ')} {percent(getattr(e, control))} {interval(bounds)}"
    text += f", n = {e.n}"
    if e.reward_faults:
        text += f"; completions not counted, because the reward failed: {e.reward_faults}"
    if e.split == "test" and not e.step and e.strict == 0 and (e.second_opinion or 0) >= 0.2 and e.n >= 20:
        text += f"\n  warning: none is right in the format that the reward asks for; {SHOW_FORMAT}"
    return text


def _unpaid(metrics: StepMetrics) -> str:
    """The verdict that is not paid for: lenient where the task has one."""
    control = control_verdict(metrics.lenient)
    return f"{control.replace('_', ' ')} {percent(getattr(metrics, control))}"


def _taught(metrics: StepMetrics) -> str:
    """How much of a step taught nothing; in a warm start that is all but the right completions."""
    return "warm start" if metrics.warm_start else f"no-signal groups {percent(metrics.no_signal_ratio, 0)}"


def _eta(seconds: float) -> str:
    return "" if isnan(seconds) else f"ETA {duration(seconds)}"


def _why_not(metrics: StepMetrics) -> str:
    if metrics.not_finite:
        return f"no update: {metrics.not_finite} not finite"
    if metrics.warm_start:
        return "no update: no completion was right"
    equal = metrics.no_signal_ratio == 1
    return f"no update: {'every group had equal rewards' if equal else 'nothing to learn from'}"
