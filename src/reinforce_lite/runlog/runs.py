"""Runs by name: create one, open one to resume it, find one to read it or to use its model."""

import logging
import re
import time
from pathlib import Path

from reinforce_lite.config import DEFAULT_RECIPE, Config, load_config, override_config
from reinforce_lite.errors import UsageError, explain_file_errors
from reinforce_lite.runlog.run import RUNS, Run
from reinforce_lite.tasks import stop_strings
from reinforce_lite.utils.paths import exists, is_dir, is_file

logger = logging.getLogger(__name__)

NO_ADAPTER = {"adapter.rank": 0, "adapter.targets": ()}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_OF_A_RUN = ("steps.jsonl", "evals.jsonl", "summary.json", "checkpoints")
"""What a run writes after its config.toml."""


def create_run(name: str) -> Run:
    """A new run directory under runs/. Raises UsageError for a bad name or one that is taken."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:60]!r} can't be the name of a run",
            "use up to 100 letters, digits, dots, dashes and underscores, starting with a letter or digit",
        )
    run = Run(RUNS / name)
    if run.started:
        remedy = f"resume it with --run {name} --resume, or choose another name"
        raise UsageError(f"the run {name} already exists", remedy)
    if left := next((file for file in _OF_A_RUN if exists(run.path / file)), None):
        raise UsageError(
            f"{run.path} has the {left} of a run, but no config.toml",
            "restore that file to resume the run, or choose another name",
        )
    with explain_file_errors("write", run.path.absolute()):
        run.path.mkdir(parents=True, exist_ok=True)
    return run


def open_run(name: str, resume: bool = False, recipe: str = "") -> Run:
    """A new run, or with `resume` the existing one of this name. Without a name a new run is named after its
    recipe and the time.

    Raises UsageError as `create_run`, and for a resume without a name.
    """
    if not name and resume:
        raise UsageError("--resume needs the name of a run", "name it with --run NAME, in Python run='NAME'")
    name = name or new_run_name(recipe)
    if resume and (run := existing_run(name)):
        return run
    run = create_run(name)
    if resume:
        logger.warning("there is no run %s to resume: starting a new one", name)
    return run


def new_run_name(recipe: str) -> str:
    """The name of a run that was given none: the recipe's name and the time."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", recipe).strip("._-") or "run"
    name = f"{plain[:60]}-{time.strftime('%Y%m%d-%H%M%S')}"
    taken = sum(1 for _ in RUNS.glob(f"{name}*"))
    return f"{name}-{taken + 1}" if taken else name


def existing_run(name: str) -> Run | None:
    """The run of this name under runs/, or at this path; None when there is none."""
    if not name.strip():
        return None
    return next((run for run in (Run(RUNS / name), Run(Path(name))) if run.started), None)


def find_run(name: str) -> Run:
    """An existing run, by its name under runs/ or by path. Raises UsageError when there is none."""
    if run := existing_run(name):
        return run
    latest = ", ".join(sorted(p.parent.name for p in RUNS.glob("*/config.toml"))[-5:])
    raise UsageError(f"there is no run {name!r}", f"the latest under runs/: {latest}" if latest else "")


def trained_config(name: str) -> Config:
    """The config to load `name` with: a run's with its trained model, or the quickstart's with the
    model `name`, with a warning if that was trained with a prompt of its own.

    A model folder inside a run, such as its best/, brings that run's config too. Models are merged, and an
    adapter's folder brings its own rank.
    Raises UsageError for a run that has no trained model yet, and for an empty name.
    """
    if not name.strip():
        raise UsageError(
            f"{name!r} is no model or run", "give a run, a model folder, a hub name or smollm2-135m"
        )
    if run := existing_run(name):
        if not run.has_model:
            yet = "" if run.is_finished else " yet"
            raise UsageError(f"the run {name} has no trained model{yet}", run.model_hint)
        return _as_trained(run.config, str(run.path / "model"))
    path, run_around = Path(name), Run(Path(name).parent)
    if is_dir(path) and run_around.started and any(exists(run_around.path / file) for file in _OF_A_RUN):
        return _as_trained(run_around.config, name)
    if is_file(path / "prompt.json"):
        logger.warning(
            "%s is outside its run: where no option says otherwise, prompt and limits are the quickstart's, "
            "not those of its prompt.json",
            name,
        )
    return override_config(load_config(DEFAULT_RECIPE), {"model.name": name} | NO_ADAPTER)


def _as_trained(config: Config, model: str) -> Config:
    """A run's config with a model of its own, whose completions end where they did in training, even where
    options name another task.
    """
    stops = {"rollout.stop": list(stop_strings(config))}
    return override_config(config, {"model.name": model} | stops | NO_ADAPTER)
