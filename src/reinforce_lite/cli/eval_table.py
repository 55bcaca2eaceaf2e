"""What the `eval` command prints after the accuracy: pass@k, and the most common failures."""

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from reinforce_lite.cli.args import EvalArgs
from reinforce_lite.config import Config, flat_values, option_text
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.evaluation.failures import Failure
from reinforce_lite.evaluation.statistics import constant_hint
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import existing_run, trained_config
from reinforce_lite.types import Problem
from reinforce_lite.utils.program import command_line
from reinforce_lite.utils.text import as_sentence, interval, percent, shorten

MAX_REASONS = 5
"""Reasons with a row of their own."""


def show_evaluation(result: Evaluation, failures: Sequence[Failure], console: Console | None = None) -> None:
    """Print both tables; the texts of a model are escaped and shortened."""
    console = console or Console(highlight=False, markup=False)
    if result.pass_at:
        console.print(f"strict pass@k from {result.samples} sampled completions per problem (95% intervals)")
        table = Table("k", "pass@k", "interval")
        for k, share in result.pass_at.items():
            table.add_row(str(k), percent(share), interval(result.pass_at_interval[k]))
        console.print(table)
    if failures:
        console.print("why completions fail, with an example of each reason")
        console.print(_failure_table(failures))
    if constant := constant_hint(result.to_record()):
        console.print(as_sentence(constant))


def describe_measured(args: EvalArgs, config: Config, result: Evaluation, problems: Sequence[Problem]) -> str:
    """Which weights were measured, on how much, and for a run's trained model what the untrained one does."""
    text = f"measured: {config.model.name} on {result.n} test problems"
    if result.n < config.eval.n and not result.reward_faults:
        text += " (there are no more)"
    run = existing_run(args.target)
    if not run or config.model.name != (trained := trained_config(args.target)).model.name:
        return text
    text += f", trained for {run.summary['steps']} steps" if run.is_finished else f", {run.model_progress}"
    if run.before and args.samples == 1 and config == trained and _asked(run) == set(map(_key, problems)):
        return f"{text}; the untrained model on the same problems: strict {percent(run.before['strict'])}"
    as_trained, measured = flat_values(trained), flat_values(config)
    changed = {key: value for key, value in measured.items() if value != as_trained[key]}
    changed["model.name"] = run.config.model.name
    options = [option_text(key, value) for key, value in changed.items()]
    command = command_line("eval", shlex.quote(args.target), *options, f"--samples {args.samples}")
    return f"{text}; the untrained model: {command}"


def _asked(run: Run) -> set[tuple[str, str, str]]:
    """The test problems on which the run evaluated the untrained model."""
    lines = (line for line in run.read("eval_rollouts") if (line["split"], line["step"]) == ("test", 0))
    return {(line["problem_id"], line["question"], str(line["gold"])) for line in lines}


def _key(problem: Problem) -> tuple[str, str, str]:
    return problem.id, problem.question, str(problem.gold)


def _failure_table(failures: Sequence[Failure]) -> Table:
    reason, example = Column("reason", max_width=24), Column("example", overflow="fold")
    table = Table(reason, "completions", example, show_lines=True)
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
