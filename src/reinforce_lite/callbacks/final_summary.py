"""What a person sees when a run has ended: accuracy before and after, all files, what to try next."""

from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reinforce_lite.runlog.run import Run
from reinforce_lite.utils.program import command_line
from reinforce_lite.utils.text import duration, interval, percent

MAX_QUESTION = 120  # characters of an example question


def final_summary(run: Run) -> RenderableType:
    """Accuracy before and after, and where everything is."""
    summary = run.summary
    evals = summary["evals"]
    parts: list[RenderableType] = [before_after_table(evals)] if "after" in evals else []
    parts += [warning_text(text) for text in summary.get("warnings", [])]
    places = _rows()
    if (run.path / "report.html").exists():
        places.add_row("report", f"{run.path / 'report.html'} (open it in a browser)")
    places.add_row("model", str(run.path / "model"))
    if (run.path / "best").is_dir():
        places.add_row("best on validation", f"{run.path / 'best'} (step {summary['best_step']})")
    elif summary["best_step"] == 0 and summary["steps"]:
        places.add_row("note", "on validation no step was better than the untrained model")
    places.add_row("completions", str(run.path / "rollouts.jsonl"))
    places.add_row("took", duration(summary["seconds"]))
    if summary["stopped"] == "hours":
        places.add_row(
            "ended", f"after {summary['steps']} of {run.config.train.steps} steps, when its hours were over"
        )
    return Stack(*parts, places)


def next_commands(run: Run) -> Text:
    """Three commands that can be copied as printed: printed with soft_wrap each is one line."""
    steps = 2 * run.config.train.steps
    longer = f"--train.steps {steps}" if run.summary["stopped"] == "steps" else "--train.hours 1"
    commands = {
        command_line("ask", run.name, f'"{_example_question(run)}"'): "trained and untrained model",
        command_line("train", "--run", run.name, "--resume", longer): "train longer",
        command_line("eval", run.name, "--eval.n 400"): "more test problems",
    }
    width = max(map(len, commands))
    lines = [f"  {command:{width}}  # {purpose}" for command, purpose in commands.items()]
    return Text("\n".join(["try next", *lines]))


def _example_question(run: Run) -> str:
    """The first test question that is one short, plain line."""
    questions = (record["question"] for record in run.read("eval_rollouts") if record["split"] == "test")
    plain = (
        q for q in questions if q.isprintable() and len(q) <= MAX_QUESTION and not set(q) & set('"`$\\!')
    )
    return next(plain, "your question")


def _rows() -> Table:
    return Table.grid(padding=(0, 2))


def before_after_table(evals: dict[str, Any]) -> Table:
    """Accuracy before and after on the same test problems, with intervals and significance."""
    n = evals["after"]["n"]
    table = Table(
        title=f"accuracy on {n} test problems never trained on (95% intervals)", title_justify="left"
    )
    for name in ("", "before", "after", "change"):
        table.add_column(name)
    control = "lenient" if evals["after"]["lenient"] is not None else "second_opinion"
    for kind in ("strict", control):
        before, after = evals["before"].get(kind), evals["after"].get(kind)
        if before is None or after is None:
            continue
        p = evals["paired_p"][kind]
        verdict = "" if p is None else f" ({'significant' if p < 0.05 else 'not significant'}, p = {p:.2g})"
        cells = [_with_interval(evals[when], kind) for when in ("before", "after")]
        table.add_row(kind.replace("_", " "), *cells, f"{100 * (after - before):+.1f} points{verdict}")
    return table


def warning_text(text: str) -> Text:
    """A warning as it is shown during a run and after it."""
    return Text(f"warning: {text}", style="yellow")


def _with_interval(record: dict[str, Any], kind: str) -> str:
    return f"{percent(record[kind])} {interval(record[f'{kind}_interval'])}"
