"""The commands. Heavy imports happen inside them, so that `--help` answers at once.

reinforce-lite train  [RECIPE | FILE.toml] [--section.key VALUE ...] [--run NAME] [--resume]
reinforce-lite eval   MODEL_OR_RUN [--task.name gsm8k --eval.n 200 ...]
reinforce-lite ask    MODEL_OR_RUN "question"
reinforce-lite plan   [RECIPE | FILE.toml] [--vram 24]
reinforce-lite report RUN [RUN ...] [--out FILE]
"""

import json as jsonlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from reinforce_lite.errors import DoesNotFitError, ReinforceLiteError, UsageError
from reinforce_lite.utils.logs import quiet_dependencies

BEGAN = time.perf_counter()  # near enough to the process's own start
USAGE = """usage: reinforce-lite COMMAND ...

  train  [RECIPE | FILE.toml]      train a model; with no recipe, the quickstart
  eval   MODEL_OR_RUN              held-out accuracy, strict and lenient, and why answers are wrong
  ask    MODEL_OR_RUN "question"   one answer; for a run, the untrained model's beside it
  plan   [RECIPE | FILE.toml]      the memory that a run would need, and whether a card holds it
  report RUN [RUN ...]             one HTML file: result, curves, answers to read; several runs compared

reinforce-lite COMMAND --help shows the options of a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0 done, 1 failed, 2 bad usage, 3 would not fit, 130 and 143 stopped."""
    args = list(sys.argv[1:] if argv is None else argv)
    quiet_dependencies()
    _show_notices()
    try:
        return _dispatch(args)
    except ReinforceLiteError as error:
        print(f"reinforce-lite: {error.cause}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader left: `reinforce-lite eval ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(version("reinforce-lite"))
        return 0
    if args[0] not in COMMANDS:
        near = get_close_matches(args[0], COMMANDS, n=1)
        raise UsageError(
            f"there is no command {args[0]!r}",
            f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}",
        )
    COMMANDS[args[0]](args[1:])
    return 0


def _train(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_train
    from reinforce_lite.runlog.run import new_run_name, open_run

    parsed, config = parse_train(args)
    if parsed.resume and not parsed.run:
        raise UsageError("--resume needs to know which run to go on with", "name it with --run NAME")
    run = open_run(parsed.run or new_run_name(config.recipe), parsed.resume)

    from reinforce_lite.callbacks.console import make_console
    from reinforce_lite.cli.plan_table import show_plan
    from reinforce_lite.planner.plan import plan_unchanged
    from reinforce_lite.trainer import trainer

    command = shlex.join(["reinforce-lite", "train", *args])
    try:
        trainer.train(config, run, screen=make_console(parsed.json), command=command, began=BEGAN)
    except DoesNotFitError:
        show_plan(plan_unchanged(config), to_error=True)
        raise
    if parsed.json:
        _print_json(run.summary)


def _eval(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_eval

    parsed, config = parse_eval(args)

    from dataclasses import asdict

    from reinforce_lite.api import evaluate_model
    from reinforce_lite.callbacks.console import make_console
    from reinforce_lite.cli.eval_table import show_evaluation

    result, failed = evaluate_model(config, make_console(parsed.json))
    if parsed.json:
        _print_json(result.line() | {"failures": [asdict(failure) for failure in failed]})
    else:
        show_evaluation(result, failed)


def _ask(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_ask

    parsed = parse_ask(args)

    from reinforce_lite.cli.ask import ask_model, show_answers

    answers = ask_model(parsed.model, parsed.question)
    if parsed.json:
        _print_json(answers)
    else:
        show_answers(parsed.question, answers)


def _plan(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_plan

    parsed, config = parse_plan(args)

    from reinforce_lite.cli.plan_table import plan_as_json, show_plan
    from reinforce_lite.planner.plan import check_fits, make_plan

    made = make_plan(config, parsed.vram)
    if parsed.json:
        _print_json(plan_as_json(made))
    else:
        show_plan(made)
    check_fits(made)


def _report(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_report

    parsed, runs, file = parse_report(args)

    from reinforce_lite.report.write import write_report
    from reinforce_lite.utils.text import harmless

    try:
        numbers = write_report(runs, file)
    except OSError as error:
        raise UsageError(f"can't write {file}: {error.strerror}") from None
    if parsed.json:
        _print_json({"report": str(file), "runs": numbers})
        return
    for one in numbers:
        print(harmless(f"{one['name']}: {one['result']['sentence']}"))
    print(f"report: {file}")


def _print_json(value: Any) -> None:
    print(jsonlib.dumps(value, indent=2))  # in ASCII: no terminal acts on it, and every pipe takes it


class _Notices(logging.Handler):
    """Writes to whatever standard error is at that moment: a live display takes it over for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _show_notices() -> None:
    """Notices of the package, one line each, on standard error."""
    logger = logging.getLogger("reinforce_lite")
    if not logger.handlers:
        handler = _Notices()
        handler.setFormatter(logging.Formatter("note: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "eval": _eval,
    "ask": _ask,
    "plan": _plan,
    "report": _report,
}
