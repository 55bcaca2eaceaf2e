"""What a person sees when a run has ended: accuracy before and after, all files, what to try next."""

from itertools import chain
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reinforce_lite.evaluation.statistics import against_chance, constant_hint, control_verdict
from reinforce_lite.runlog.run import Run
from reinforce_lite.utils.program import command_line
from reinforce_lite.utils.text import duration, harmless, interval, percent, rounded

MAX_QUESTION = 120  # characters of an example question


def final_summary(run: Run) -> RenderableType:
    """Accuracy before and after, and where everything is; the run has told its warnings before."""
    summary = run.summary
    evals = summary["evals"]
    parts: list[RenderableType] = [before_after_table(evals)] if {"before", "after"} <= evals.keys() else []
    places = Table.grid(padding=(0, 2))

    def add(label: str, text: str) -> None:
        places.add_row(label, Text(harmless(text)))

    if constant := constant_hint(evals.get("after", {})):
        add("note", constant)
    if (run.path / "report.html").exists():
        add("report", f"{run.path / 'report.html'} (open it in a browser)")
    add("model", str(run.path / "model"))
    if (run.path / "adapter").is_dir():
        add("adapter", str(run.path / "adapter"))
    if (run.path / "best").is_dir():
        add("best on validation", f"{run.path / 'best'} (step {summary['best_step']})")
    elif summary["best_step"] == 0 and summary["steps"]:
        n = next(e["n"] for e in run.evals if e["split"] == "validation")
        add("note", f"no step was better than the untrained model on {n} validation problems")
    add("completions", str(run.path / "rollouts.jsonl"))
    add("took", duration(summary["seconds"]))
    if summary["stopped"] == "hours":
        steps = f"{summary['steps']} of {run.config.train.steps} steps"
        add("ended", f"after {steps}, when its hours were over")
    return Group(*parts, places)


def next_commands(run: Run) -> Text:
    """Commands that can be copied as printed: printed with soft_wrap each is one line.

    After a warning there is a page to read instead of more steps, and no more test problems than there are.
    """
    summary, config = run.summary, run.config
    commands = {command_line("ask", run.name, f'"{_example_question(run)}"'): "trained and untrained model"}
    if summary["warnings"]:
        commands["docs/howto/nothing-is-learned.md"] = "the page to read, because of the warning"
    else:
        longer = f"steps {2 * config.train.steps}" if summary["stopped"] == "steps" else "hours 1"
        commands[command_line("train", "--run", run.name, "--resume", f"--train.{longer}")] = "train longer"
    if (n := min(2 * config.eval.n, summary["test_problems"])) > config.eval.n:
        commands[command_line("eval", run.name, f"--eval.n {n}")] = "more test problems"
    width = max(map(len, commands))
    lines = [f"  {command:{width}}  # {purpose}" for command, purpose in commands.items()]
    return Text(harmless("\n".join(["try next", *lines])))


def _example_question(run: Run) -> str:
    """A short, plain test question: the first that only the trained model solved, or else the first."""
    lines = [
        record
        for record in run.read("eval_rollouts")
        if record["split"] == "test" and _is_plain(record["question"])
    ]
    wrong = {record["problem_id"] for record in lines if record["step"] == 0 and not record["strict"]}
    learned = (r for r in lines if r["step"] > 0 and r["strict"] and r["problem_id"] in wrong)
    first = next(chain(learned, lines), None)
    return str(first["question"]) if first else "your question"


def _is_plain(question: str) -> bool:
    return question.isprintable() and len(question) <= MAX_QUESTION and not set(question) & set('"`$\\!')


def before_after_table(evals: dict[str, Any]) -> Table:
    """Accuracy before and after on the same test problems, with intervals and p-values."""
    title = f"accuracy on {evals['after']['n']} test problems never trained on (95% intervals)"
    table = Table("", "before", "after", "change", title=title, title_justify="left")
    for kind in ("strict", control_verdict(evals["after"]["lenient"])):
        before, after = evals["before"].get(kind), evals["after"].get(kind)
        if before is None or after is None:
            continue
        p = evals["paired_p"][kind]
        verdict = "" if p is None else f", {against_chance(p, after - before, evals['after']['n'])}"
        pair = (evals["before"], evals["after"])
        cells = [f"{percent(e[kind])} {interval(e[f'{kind}_interval'])}" for e in pair]
        table.add_row(kind.replace("_", " "), *cells, f"{rounded(100 * (after - before)):+} points{verdict}")
    return table
