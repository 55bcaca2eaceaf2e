"""The commands' options: the sections of a recipe, with a recipe's values as their defaults."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, TypeVar

from reinforce_lite.config import Config

os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # read when pydantic is first imported

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from reinforce_lite.config import (
    RENAMED,
    EvalConfig,
    LogConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptConfig,
    RolloutConfig,
    TaskConfig,
    TrainConfig,
    UpdateConfig,
    load_config,
    option_flag,
)
from reinforce_lite.errors import UsageError
from reinforce_lite.runlog.run import Run, find_run, run_exists, trained_config

DEFAULT_RECIPE = "quickstart"

Flag = FlagCreatePairsOff[bool]


@dataclass(frozen=True)
class Sections:
    """The options that every recipe has."""

    model: ModelConfig
    task: TaskConfig
    prompt: PromptConfig
    rollout: RolloutConfig
    objective: ObjectiveConfig
    update: UpdateConfig
    train: TrainConfig
    eval: EvalConfig
    log: LogConfig


@dataclass(frozen=True)
class TrainArgs(Sections):
    """Train a model in a new run directory, or resume a run."""

    recipe: Positional[str] = ""
    """A shipped recipe or a TOML file; quickstart when none is given."""
    run: Annotated[str, arg(metavar="NAME")] = ""
    """The name of the run, under runs/; by default the recipe's name and the time."""
    resume: Flag = False
    """Resume the run of that name from its last checkpoint."""
    json: Flag = False
    """Print the summary as JSON."""


@dataclass(frozen=True)
class EvalArgs(Sections):
    """Measure accuracy on held-out problems, and say why completions are wrong."""

    target: Annotated[Positional[str], arg(metavar="MODEL_OR_RUN")] = ModelConfig().name
    """A run, a model folder, a hub name, or smollm2-135m."""
    samples: int = 1
    """Completions of each problem. One is greedy; several are sampled as in training, for pass@k."""
    json: Flag = False
    """Print the result as JSON."""


@dataclass(frozen=True)
class PlanArgs(Sections):
    """Say how much memory a run needs, before a weight is loaded."""

    recipe: Positional[str] = ""
    """A shipped recipe or a TOML file; quickstart when none is given."""
    vram: Annotated[float | None, arg(metavar="GB")] = None
    """Plan for a card of this many GB (10^9 bytes); by default for this machine."""
    json: Flag = False
    """Print the plan as JSON."""


@dataclass(frozen=True)
class AskArgs:
    """Ask a model a question."""

    model: Annotated[Positional[str], arg(metavar="MODEL_OR_RUN")]
    """A run, a model folder, a hub name, or smollm2-135m."""
    question: Positional[str]
    json: Flag = False
    """Print the responses as JSON."""


@dataclass(frozen=True)
class ReportArgs:
    """Write the report of one run or of several, as one HTML file."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Names under runs/, or paths."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where to write; by default report.html in the run, for several runs in the current folder."""
    json: Flag = False
    """Print the numbers of the page as JSON."""


Command = TypeVar("Command", bound=Sections)


def parse_train(args: list[str]) -> tuple[TrainArgs, Config]:
    """Parse `train`'s arguments.

    The recipe determines the other options' defaults and is itself an argument, so the arguments are parsed
    twice. A resumed run brings its own config unless a recipe is named.
    """
    first = _parse(TrainArgs, load_config(DEFAULT_RECIPE), args)
    source = first.recipe or DEFAULT_RECIPE
    if first.resume and first.run and not first.recipe and run_exists(first.run):
        source = str(find_run(first.run).path / "config.toml")
    base = load_config(source)
    parsed = _parse(TrainArgs, base, args)
    return parsed, _config(parsed, base)


def parse_eval(args: list[str]) -> tuple[EvalArgs, Config]:
    """Parse `eval`'s arguments: a run brings its own config, any other model the quickstart's."""
    base = load_config(DEFAULT_RECIPE)
    base = trained_config(_parse(EvalArgs, base, args).target, base)
    parsed = _parse(EvalArgs, base, args)
    return parsed, _config(parsed, base)


def parse_plan(args: list[str]) -> tuple[PlanArgs, Config]:
    """Parse `plan`'s arguments; the recipe is found as in `train`."""
    base = load_config(_parse(PlanArgs, load_config(DEFAULT_RECIPE), args).recipe or DEFAULT_RECIPE)
    parsed = _parse(PlanArgs, base, args)
    return parsed, _config(parsed, base)


def parse_ask(args: list[str]) -> AskArgs:
    """Parse `ask`'s arguments."""
    return tyro.cli(AskArgs, args=args, prog="reinforce-lite ask")


def parse_report(args: list[str]) -> tuple[ReportArgs, list[Run], Path]:
    """Parse `report`'s arguments, the runs that they name, and the file to write.

    Raises UsageError when no run is named, or one that does not exist.
    """
    parsed = tyro.cli(ReportArgs, args=args, prog="reinforce-lite report")
    if not parsed.runs:
        raise UsageError("report needs the name of a run", "name one under runs/, or several")
    runs = [find_run(name) for name in parsed.runs]
    folder = runs[0].path if len(runs) == 1 else Path()
    return parsed, runs, parsed.out or folder / "report.html"


def _parse(command: type[Command], base: Config, args: list[str]) -> Command:
    """Parse the arguments with the values of `base` as defaults; bad usage exits with status 2."""
    _check_renamed(args)
    sections = {name: getattr(base, name) for name in SECTIONS}
    prog = f"reinforce-lite {PROGS[command]}"
    return tyro.cli(command, args=args, default=command(**sections), prog=prog)


def _check_renamed(args: list[str]) -> None:
    """Raises UsageError for an option of an earlier version."""
    for argument in args:
        option = argument.partition("=")[0]
        new = RENAMED.get(option.removeprefix("--").replace("-", "_")) if option.startswith("--") else None
        if new:
            raise UsageError(
                f"the option {option} is now called {option_flag(new) if '.' in new else new}", "rename it"
            )


def _config(parsed: Sections, base: Config) -> Config:
    return Config(recipe=base.recipe, **{name: getattr(parsed, name) for name in SECTIONS})


SECTIONS = tuple(field.name for field in fields(Sections))
PROGS: dict[type[Sections], str] = {TrainArgs: "train", EvalArgs: "eval", PlanArgs: "plan"}
