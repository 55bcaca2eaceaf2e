"""The commands. Heavy imports happen inside them, so that `--help`, which prints what follows, answers
immediately.

usage: reinforce-lite COMMAND ...

  train  [RECIPE | FILE.toml]      train a model; with no recipe, the quickstart
  audit  [RECIPE | FILE.toml]      is the reward right, and will the model learn; before an hour is spent
  eval   MODEL_OR_RUN              held-out accuracy, strict and lenient, and why completions are wrong
  ask    MODEL_OR_RUN "question"   one response; for a run, next to the untrained model's
  plan   [RECIPE | FILE.toml]      the memory that a run needs, and whether a card has it
  report RUN [RUN ...]             one HTML file: result, curves, completions to read; several runs compared
  export RUN                       the model of a run's last checkpoint, or of another one, without training
  doctor [RUN]                     what this machine can do; for a run, what its figures mean, what is wrong

reinforce-lite COMMAND --help shows the options of a command.
"""

import io
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from reinforce_lite.errors import DoesNotFitError, ReinforceLiteError, UsageError
from reinforce_lite.models.torchrun import world_size
from reinforce_lite.trainer.signals import Interrupted, SignalGuard
from reinforce_lite.utils import clock
from reinforce_lite.utils.finite import to_json
from reinforce_lite.utils.logs import quiet_dependencies
from reinforce_lite.utils.secrets import mask_all
from reinforce_lite.utils.text import did_you_mean, harmless

START = clock.now()  # close enough to the start of the process
ERROR_WAIT_SECONDS = 10.0
"""How long the processes that stay silent wait before they exit, so that the one that prints their common
error can finish: torchrun ends all processes as soon as one has exited."""
IS_MAIN = os.environ.get("RANK", "0") == "0"
"""Whether this is the one of several processes that prints (models/distributed.py)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 failed, 2 bad usage, 3 does not fit, 129, 130, 143 stopped."""
    args = list(sys.argv[1:] if argv is None else argv)
    quiet_dependencies()
    _show_notices()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an encoding may lack a character
    try:
        guard = SignalGuard(notice="")
        with guard.listening():
            try:
                _dispatch(args)
            finally:
                guard.check()
        if sys.stdout:  # None where it was closed from the start
            sys.stdout.flush()
        return 0
    except ReinforceLiteError as error:
        _show_error(error)
        return error.exit_code
    except Interrupted as interrupted:
        return 128 + interrupted.signum
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and (lost := _lost_output()):
            if not isinstance(lost, BrokenPipeError):  # the reader left, as in `... | head`
                with suppress(OSError):
                    print(f"reinforce-lite: can't write the output: {lost.strerror}", file=sys.stderr)
            return 1
        print(harmless("".join(traceback.format_exception(error))), end="", file=sys.stderr)  # a bug
        return 1


def _lost_output() -> OSError | None:
    """The error of writing a line to standard output, or None; after an error the rest is dropped."""
    try:
        print(flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _show_error(error: ReinforceLiteError) -> None:
    """Two lines. What all of several processes raise is shown by the main one alone."""
    distributed = sys.modules.get("reinforce_lite.models.distributed")
    if distributed and distributed.size() > 1:
        is_shown = IS_MAIN or not distributed.is_failing()
    else:  # they have not met yet
        is_shown = os.environ.get("LOCAL_RANK", "0") == "0"
        if not is_shown:
            time.sleep(ERROR_WAIT_SECONDS)
    if is_shown:
        with suppress(OSError):  # the terminal was closed
            print(harmless(f"reinforce-lite: {error.cause}"), file=sys.stderr)
            if error.remedy:
                print(harmless(f"  {error.remedy}"), file=sys.stderr)


def _dispatch(args: list[str]) -> None:
    command, *rest = args or ["--help"]
    if command in ("-h", "--help", "help"):
        print(str(__doc__).partition("\n\n")[2], end="")
    elif command == "--version":
        from reinforce_lite import __version__

        print(__version__)
    elif command in COMMANDS and command != "train" and world_size() > 1:
        raise UsageError(f"{command} runs in one process", "start it without torchrun")
    elif command in COMMANDS:
        _check_folder()
        COMMANDS[command](rest)
    else:
        remedy = did_you_mean(command, COMMANDS, f"there are: {', '.join(COMMANDS)}")
        raise UsageError(f"there is no command {command!r}", remedy)


def _check_folder() -> None:
    """Raises UsageError in a folder that was deleted: no path is found from there, nor torch's libraries."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise UsageError("the current folder was deleted", "go to one that exists, e.g. with cd") from None


def _train(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_train
    from reinforce_lite.runlog.runs import open_run

    parsed, config = parse_train(args)
    # Before the imports, so that a name that is taken costs no time; several processes have to meet first.
    run = None if world_size() > 1 else open_run(parsed.run, parsed.resume, config.recipe)
    with _imports(parsed.as_json or not IS_MAIN):
        from reinforce_lite.callbacks.console import make_console
        from reinforce_lite.cli.plan_table import show_plan_after_oom
        from reinforce_lite.models import distributed
        from reinforce_lite.planner.plan import plan_unchanged
        from reinforce_lite.trainer import session

    if run is None:
        distributed.join(config.model.device)
        config, run = session.open_together(config, parsed.run, parsed.resume)
    command = shlex.join(["reinforce-lite", "train", *args])
    try:
        console = make_console(parsed.as_json or not IS_MAIN)
        session.train(config, run, None, console, command, START, permissions=parsed.permissions)
    except DoesNotFitError:
        if IS_MAIN:
            allowed = parsed.permissions.trust_remote_code
            show_plan_after_oom(plan_unchanged(config, trust_remote_code=allowed))
        raise
    distributed.leave()
    if parsed.as_json and IS_MAIN:
        _print_json(run.summary)


def _audit(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_audit

    parsed, config = parse_audit(args)
    with _imports(parsed.as_json):
        from reinforce_lite.cli.audit_table import show_audit
        from reinforce_lite.trainer.audit import audit

    def progress(text: str) -> None:
        if not parsed.as_json:
            print(harmless(f"{text} ..."), flush=True)

    found = audit(config, parsed.minutes, permissions=parsed.permissions, progress=progress)
    if parsed.as_json:
        _print_json(found.to_record())
    else:
        show_audit(found)
    if found.data.reason_broken:
        raise UsageError(f"the task is broken: {found.data.reason_broken}", "fix its reward or its golds")


def _eval(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_eval

    parsed, config = parse_eval(args)
    with _imports(parsed.as_json):
        from dataclasses import asdict

        from reinforce_lite.api import evaluate_model
        from reinforce_lite.callbacks.console import make_console
        from reinforce_lite.cli.eval_table import describe_measured, show_evaluation

    console = make_console(parsed.as_json)
    result, failed, problems = evaluate_model(config, console, parsed.samples, permissions=parsed.permissions)
    if parsed.as_json:
        _print_json(result.to_record() | {"failures": [asdict(failure) for failure in failed]})
    else:
        show_evaluation(result, failed)
        print(harmless(describe_measured(parsed, config, result, problems)))


def _ask(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_ask

    parsed = parse_ask(args)
    with _imports(parsed.as_json):
        from reinforce_lite.api import ask_model
        from reinforce_lite.cli.ask import show_responses

    responses = ask_model(parsed.model, parsed.question, parsed.permissions)
    if parsed.as_json:
        _print_json(responses)
    else:
        show_responses(parsed.question, responses)


def _plan(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_plan

    parsed, config = parse_plan(args)

    with _imports(quiet=True):
        from reinforce_lite.cli.plan_table import plan_as_json, show_plan
        from reinforce_lite.planner.plan import best_plan, check_fits, plan_unchanged

    made = best_plan(plan_unchanged(config, parsed.vram, processes=parsed.processes))
    if parsed.as_json:
        _print_json(plan_as_json(made))
    else:
        show_plan(made)
    check_fits(made)


def _report(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_report

    parsed, runs, file = parse_report(args)

    from reinforce_lite.report.write import write_report

    summaries = write_report(runs, file)
    if parsed.as_json:
        _print_json({"report": str(file), "runs": summaries})
        return
    for summary in summaries:
        print(harmless(f"{summary['name']}: {summary['result']['sentence']}"))
    print(harmless(f"report: {file}"))


def _export(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_export
    from reinforce_lite.runlog.runs import find_run

    parsed = parse_export(args)
    run = find_run(parsed.run)
    with _imports(quiet=False):
        from reinforce_lite.trainer.export import export_model

    folder, step = export_model(run, parsed.step, parsed.to, parsed.dtype, parsed.permissions)
    print(harmless(f"the model of step {step} of {run.config.train.steps}: {folder}"))


def _doctor(args: list[str]) -> None:
    from reinforce_lite.cli.args import parse_doctor
    from reinforce_lite.runlog.diagnosis import diagnose
    from reinforce_lite.runlog.runs import find_run

    parsed = parse_doctor(args)
    run = None if parsed.run is None else find_run(parsed.run)
    with _imports(quiet=parsed.as_json or run is not None):
        from dataclasses import asdict

        from reinforce_lite.cli.doctor import machine_as_json, show_diagnosis, show_machine
        from reinforce_lite.trainer.machine_check import check_machine

    if run is not None:
        diagnosis = diagnose(run)
        if parsed.as_json:
            _print_json(asdict(diagnosis))
        else:
            show_diagnosis(run.name, diagnosis)
        return
    if not parsed.as_json:
        print("testing this machine for about a minute ...", flush=True)
    check = check_machine()
    if parsed.as_json:
        _print_json(machine_as_json(check))
    else:
        show_machine(check)


@contextmanager
def _imports(quiet: bool) -> Iterator[None]:
    """Heavy imports: announced, since they take seconds, and cut short by the first signal."""
    if not quiet:
        print("loading libraries ...", flush=True)
    with SignalGuard(at_once=True).listening():
        yield


def _print_json(value: Any) -> None:
    # ASCII: harmless on a terminal, accepted by every pipe
    print(to_json(mask_all(value), indent=2))


class _NoticeHandler(logging.Handler):
    """Writes to the current standard error, which a live display replaces for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # it is lost, or closed
            print(harmless(f"note: {record.getMessage()}"), file=sys.stderr)


def _show_notices() -> None:
    """Show the package's warnings, one line each, on standard error; those of the main process alone."""
    logger = logging.getLogger("reinforce_lite")
    if not logger.handlers:
        logger.addHandler(_NoticeHandler() if IS_MAIN else logging.NullHandler())
        logger.propagate = False


COMMANDS = {
    "train": _train,
    "audit": _audit,
    "eval": _eval,
    "ask": _ask,
    "plan": _plan,
    "report": _report,
    "export": _export,
    "doctor": _doctor,
}
