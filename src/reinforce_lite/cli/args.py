"""The commands' options: the sections of a recipe, with a recipe's values as their defaults.

The arguments of train, eval and plan are a config with the command's own options added; each `parse` function
returns the plain config next to them.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # read when pydantic is first imported

import tyro
from pydantic import TypeAdapter
from tyro.conf import FlagCreatePairsOff, Positional, Suppress, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from reinforce_lite.config import (
    DEFAULT_RECIPE,
    RENAMED,
    Config,
    ExampleConfig,
    ModelConfig,
    load_config,
    option_flag,
    warn_of_learning_rate,
)
from reinforce_lite.errors import UsageError, explain_file_errors
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import existing_run, find_run, trained_config
from reinforce_lite.types import NO_PERMISSIONS, Permissions
from reinforce_lite.utils.paths import is_dir, is_file

JsonFlag = Annotated[FlagCreatePairsOff[bool], arg(name="json")]
"""For fields named `as_json`: one named json would hide a method of pydantic."""
DOCTYPE = b"<!DOCTYPE html>"
"""How a report begins."""
PermissionFlags = Annotated[FlagCreatePairsOff[Permissions], arg(name="")]


class TrainArgs(Config):
    """Train a model in a new run directory, or resume a run."""

    recipe: Positional[str] = ""
    """A shipped recipe or a TOML file; quickstart when none is given."""
    run: Annotated[str, arg(metavar="NAME")] = ""
    """The name of the run, under runs/; by default the recipe's name and the time."""
    resume: FlagCreatePairsOff[bool] = False
    """Resume the run of that name from its last checkpoint."""
    permissions: PermissionFlags = NO_PERMISSIONS
    as_json: JsonFlag = False
    """Print the summary as JSON."""


class AuditArgs(Config):
    """Say whether the reward is right, and whether the untrained model is likely to learn from it."""

    recipe: Positional[str] = ""
    """A shipped recipe or a TOML file; quickstart when none is given."""
    minutes: Annotated[float, arg(metavar="MINUTES")] = 3.0
    """About how long to sample."""
    permissions: PermissionFlags = NO_PERMISSIONS
    as_json: JsonFlag = False
    """Print everything as JSON."""


class EvalArgs(Config):
    """Measure accuracy on held-out problems, and say why completions are wrong."""

    recipe: Suppress[str] = ""
    target: Annotated[Positional[str], arg(metavar="MODEL_OR_RUN")] = ModelConfig().name
    """A run, a model folder, a hub name, or smollm2-135m."""
    samples: int = 1
    """Completions of each problem. One is greedy; several are sampled as in training, for pass@k."""
    permissions: PermissionFlags = NO_PERMISSIONS
    as_json: JsonFlag = False
    """Print the result as JSON."""


class PlanArgs(Config):
    """Say how much memory a run needs, before a weight is loaded."""

    recipe: Positional[str] = ""
    """A shipped recipe or a TOML file; quickstart when none is given."""
    vram: Annotated[float | None, arg(metavar="GB")] = None
    """Plan for a card of this many GB (10^9 bytes); by default for this machine."""
    processes: Annotated[int, arg(metavar="N")] = 1
    """How many processes train together, each on such a card (docs/scale.md)."""
    as_json: JsonFlag = False
    """Print the plan as JSON."""


@dataclass(frozen=True)
class AskArgs:
    """Ask a model a question."""

    model: Annotated[Positional[str], arg(metavar="MODEL_OR_RUN")]
    """A run, a model folder, a hub name, or smollm2-135m."""
    question: Positional[str]
    permissions: PermissionFlags = NO_PERMISSIONS
    as_json: JsonFlag = False
    """Print the responses as JSON."""


@dataclass(frozen=True)
class ReportArgs:
    """Write the report of one run or of several, as one HTML file."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Names under runs/, or paths."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where to write; by default report.html in the run, for several runs in the current folder."""
    as_json: JsonFlag = False
    """Print the numbers of the page as JSON."""


@dataclass(frozen=True)
class ExportArgs:
    """Write the model of a checkpoint, with an adapter merged, without training."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A name under runs/, or a path."""
    step: int | None = None
    """The checkpoint's step; by default the last."""
    to: Annotated[str, arg(metavar="FOLDER")] = ""
    """The folder to write, new or empty; by default model/ in the run."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Of the weights; by default the run's."""
    permissions: PermissionFlags = NO_PERMISSIONS


@dataclass(frozen=True)
class DoctorArgs:
    """Examine this machine, in about a minute, or a run."""

    run: Annotated[Positional[str | None], arg(metavar="RUN")] = None
    """A name under runs/, or a path; without one, this machine."""
    as_json: JsonFlag = False
    """Print everything as JSON."""


Command = TypeVar("Command", bound=Config)


def parse_train(args: list[str]) -> tuple[TrainArgs, Config]:
    """Parse `train`'s arguments.

    The recipe determines the other options' defaults and is itself an argument, so the arguments are parsed
    twice. A resumed run brings its own config unless a recipe is named.
    """
    first, _ = _parse(TrainArgs, load_config(DEFAULT_RECIPE), args)
    resumed = existing_run(first.run) if first.resume and first.run and not first.recipe else None
    recipe = resumed.config if resumed else load_config(first.recipe or DEFAULT_RECIPE)
    parsed, config = _parse(TrainArgs, recipe, args)
    warn_of_learning_rate(recipe, config)
    return parsed, config


def parse_eval(args: list[str]) -> tuple[EvalArgs, Config]:
    """Parse `eval`'s arguments: a run brings its own config, any other model the quickstart's."""
    first, _ = _parse(EvalArgs, load_config(DEFAULT_RECIPE), args)
    return _parse(EvalArgs, trained_config(first.target), args)


def parse_plan(args: list[str]) -> tuple[PlanArgs, Config]:
    """Parse `plan`'s arguments; the recipe is found as in `train`."""
    first, _ = _parse(PlanArgs, load_config(DEFAULT_RECIPE), args)
    return _parse(PlanArgs, load_config(first.recipe or DEFAULT_RECIPE), args)


def parse_audit(args: list[str]) -> tuple[AuditArgs, Config]:
    """Parse `audit`'s arguments; the recipe is found as in `train`."""
    first, _ = _parse(AuditArgs, load_config(DEFAULT_RECIPE), args)
    return _parse(AuditArgs, load_config(first.recipe or DEFAULT_RECIPE), args)


def parse_ask(args: list[str]) -> AskArgs:
    """Parse `ask`'s arguments."""
    return tyro.cli(AskArgs, args=args, prog="reinforce-lite ask")


def parse_export(args: list[str]) -> ExportArgs:
    """Parse `export`'s arguments."""
    return tyro.cli(ExportArgs, args=args, prog="reinforce-lite export")


def parse_doctor(args: list[str]) -> DoctorArgs:
    """Parse `doctor`'s arguments."""
    return tyro.cli(DoctorArgs, args=args, prog="reinforce-lite doctor")


def parse_report(args: list[str]) -> tuple[ReportArgs, list[Run], Path]:
    """Parse `report`'s arguments, the runs that they name, and the file to write.

    Raises UsageError when no run is named, or one that does not exist, and for a file that must not be
    replaced.
    """
    parsed = tyro.cli(ReportArgs, args=args, prog="reinforce-lite report")
    if not parsed.runs:
        raise UsageError("report needs the name of a run", "name one under runs/, or several")
    if parsed.out:
        _check_replaceable(parsed.out)
    runs = [find_run(name) for name in parsed.runs]
    folder = runs[0].path if len(runs) == 1 else Path()
    return parsed, runs, parsed.out or folder / "report.html"


def _check_replaceable(page: Path) -> None:
    """Raise UsageError where a report would take the place of more than an HTML page or an empty file."""
    remedy = "name a file, for example --out report.html"
    if is_dir(page):  # an empty text is the current folder
        raise UsageError(f"--out is a folder: {page}", remedy)
    if not os.path.lexists(page):
        return
    if page.is_symlink() or not is_file(page):
        raise UsageError(f"--out is a link, a pipe or a device: {page}", remedy)
    with explain_file_errors("read", page), page.open("rb") as file:
        if file.read(len(DOCTYPE)) not in (b"", DOCTYPE):
            raise UsageError(f"--out would replace {page}, which is no HTML page", "name another file")


def _parse(command: type[Command], base: Config, args: list[str]) -> tuple[Command, Config]:
    """The arguments with the values of `base` as defaults, and the config that they amount to.

    Bad usage exits with status 2.
    """
    _check_renamed(args)
    default = command(**base.model_dump(exclude={"recipe"}))
    prog = f"reinforce-lite {PROGS[command]}"
    parsed = tyro.cli(command, args=args, default=default, prog=prog, registry=_REGISTRY)
    values = parsed.model_dump(include=set(Config.model_fields))
    return parsed, Config(**values | {"recipe": base.recipe})


_REGISTRY = ConstructorRegistry()
_EXAMPLES = TypeAdapter(tuple[ExampleConfig, ...])


@_REGISTRY.primitive_rule
def _table_rule(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
    """How a table of any values (task.params) is written: each value as JSON, text as it is."""
    if type_info.type != dict[str, Any]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[STR JSON [STR JSON ...]]",
        instance_from_str=_read_table,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda table: [
            word
            for key, value in table.items()
            for word in (key, value if isinstance(value, str) else json.dumps(value))
        ],
    )


@_REGISTRY.primitive_rule
def _examples_rule(
    type_info: PrimitiveTypeInfo,
) -> PrimitiveConstructorSpec[tuple[ExampleConfig, ...]] | None:
    """Worked examples (prompt.examples) are one JSON list, so that an option can replace or remove them."""
    if type_info.type != tuple[ExampleConfig, ...]:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: _EXAMPLES.validate_json(words[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda examples: [_EXAMPLES.dump_json(examples).decode()],
    )


def _read_table(words: list[str]) -> dict[str, Any]:
    if len(words) % 2:
        raise ValueError(f"{words[-1]!r} has no value")
    return dict(zip(words[::2], map(_read_value, words[1::2]), strict=True))


def _read_value(text: str) -> Any:
    if text in ("True", "False"):  # as tyro writes a boolean
        return text == "True"
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply, with brackets in brackets") from None
    except ValueError:
        return text


def _check_renamed(args: list[str]) -> None:
    """Raises UsageError for an option of an earlier version."""
    for argument in args:
        option = argument.partition("=")[0]
        new = RENAMED.get(option.removeprefix("--").replace("-", "_"))
        if new and option.startswith("--"):
            new = option_flag(new) if "." in new else new
            raise UsageError(f"the option {option} has become {new}", "use the new name")


PROGS: dict[type[Config], str] = {
    TrainArgs: "train",
    AuditArgs: "audit",
    EvalArgs: "eval",
    PlanArgs: "plan",
}
