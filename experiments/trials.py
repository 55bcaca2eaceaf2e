"""What the experiments share: trials that are run, what is kept of each, tables and plots.

    Trial ──reinforce-lite train──▶ runs/EXPERIMENT-NAME/ ──keep──▶ docs/results/EXPERIMENT/NAME.json
                                                                         │
                                docs/results/EXPERIMENT.md, .svg ◀──the experiment's own table and plot
                                        │
                                docs/results.md ◀── docs/results.py

A trial is a command of its own, so its run is what anyone gets who types it. What has been kept isn't run
again; a trial that the time limit stops saves a checkpoint and goes on the next time. Tables and plots are
made from the kept files alone:

    python experiments/NAME.py --hours 2        # run what is missing, within two hours, and write the table
    python experiments/NAME.py --hours 0        # write the table from what is there

Needs the extra "experiments" (matplotlib, scipy).
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from scipy import stats

from reinforce_lite.config import Config
from reinforce_lite.evaluation.statistics import mcnemar_p_value, wilson_interval
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.runlog.run import Line, Run
from reinforce_lite.trainer.metrics import rollout_lines
from reinforce_lite.utils.environment import describe_machine, package_versions

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "reinforce-lite", "svg.fonttype": "none"}

RESULTS = Path(__file__).parent.parent / "docs" / "results"
"""Kept files, tables and plots."""
CURVES = [
    "reward",
    "accuracy/strict",
    "accuracy/lenient",
    "frac_reward_zero_std",
    "entropy",
    "grad_norm",
    "completions/mean_length",
    "completions/clipped_ratio",
    "reflection/list_a",
    "reflection/list_b",
    "reflection/list_c",
    "step_time",
]
KINDS = ("strict", "lenient")
"""The verdicts that are kept of each answer."""
LEARNED = [
    "seed",
    "strict before",
    "strict after",
    "lenient before",
    "lenient after",
    "p (paired)",
    "minutes",
]
"""The header above the rows of `learned`."""

Kept = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of an experiment."""

    name: str
    """Its part of the run's name, and of the kept file's."""
    options: tuple[str, ...]
    """After `reinforce-lite train`."""
    script: str = ""
    """A file beside this one, if another program is tried: it gets the options and --out, the kept file."""
    after: str = ""
    """The trial whose model this one begins with; none: the model of its recipe."""
    leaves_model: bool = False
    """Whether its model stays, since another trial begins with it."""


def main(
    experiment: str,
    trials: Sequence[Trial],
    write: Callable[[Mapping[str, Kept]], None],
    keep: Callable[[Run], Kept] | None = None,
    prepare: Callable[[], None] | None = None,
) -> None:
    """The command line of an experiment; `write` makes table and plot of what is kept, by trial, and
    `prepare` what the trials need."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--hours", type=float, default=24.0, help="stop, to go on later, after so long")
    parser.add_argument("--at-once", type=int, default=1, help="trials side by side, which share the cores")
    parser.add_argument("--only", nargs="+", default=[], help="trials whose names begin so")
    arguments = parser.parse_args()
    wanted = [t for t in trials if not arguments.only or t.name.startswith(tuple(arguments.only))]
    if prepare and arguments.hours:
        prepare()
    complete = run(experiment, wanted, arguments.hours, arguments.at_once, keep or of_run)
    if kept := read(experiment, trials):
        write(kept)
    if not complete:
        sys.exit("not all trials are done: the same command goes on")


def run(
    experiment: str, trials: Sequence[Trial], hours: float, at_once: int, keep: Callable[[Run], Kept]
) -> bool:
    """Run the trials of which nothing is kept yet; returns whether all are done."""
    end = time.monotonic() + 3600 * hours
    (RESULTS / experiment).mkdir(parents=True, exist_ok=True)
    waiting = [t for t in trials if not file(experiment, t).exists()]
    going: dict[str, subprocess.Popen[bytes]] = {}
    by_name = {t.name: t for t in waiting}
    while (ready := _ready(experiment, waiting, end)) or going:
        for trial in ready[: at_once - len(going)]:
            waiting.remove(trial)
            going[trial.name] = _start(experiment, trial, at_once)
        if time.monotonic() >= end:
            for process in going.values():
                process.send_signal(signal.SIGTERM)
            for process in going.values():
                process.wait()
        for name, process in list(going.items()):
            if process.poll() is not None:
                del going[name]
                _ended(experiment, by_name[name], process.returncode, keep)
        time.sleep(1)
    if time.monotonic() < end:
        for trial in waiting:
            left = _model(experiment, trial)
            print(
                f"{trial.name} needs {left}, which {trial.after} leaves: if that is kept without it, delete "
                f"what is kept, and {left.parent}",
                flush=True,
            )
    return all(file(experiment, t).exists() for t in trials)


def _ready(experiment: str, waiting: Iterable[Trial], end: float) -> list[Trial]:
    """Those that can begin now."""
    if time.monotonic() >= end:
        return []
    return [t for t in waiting if not t.after or _model(experiment, t).is_dir()]


def _model(experiment: str, trial: Trial) -> Path:
    """The folder of the model that it begins with, which is there once the other trial is done."""
    return Path("runs") / f"{experiment}-{trial.after}" / "model"


def _start(experiment: str, trial: Trial, at_once: int) -> "subprocess.Popen[bytes]":
    name = f"{experiment}-{trial.name}"
    if trial.script:
        script = str(Path(__file__).with_name(trial.script))
        command = [sys.executable, script, *trial.options, "--out", str(file(experiment, trial))]
    else:
        program = str(Path(sys.executable).with_name("reinforce-lite"))
        model = ("--model.name", str(_model(experiment, trial))) if trial.after else ()
        command = [program, "train", *trial.options, *model, "--run", name, "--resume"]
    Path("runs").mkdir(exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    print(f"{name}: {' '.join(command[1:])}", flush=True)
    with Path(f"runs/{name}.log").open("ab") as log:
        environment = {"OMP_NUM_THREADS": threads} | os.environ
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _ended(experiment: str, trial: Trial, status: int, keep: Callable[[Run], Kept]) -> None:
    """Keep what is worth keeping, and free the gigabytes."""
    name = f"{experiment}-{trial.name}"
    if status not in (0, 130, 143):
        print(f"{name} failed with status {status}: runs/{name}.log", flush=True)
    if status or trial.script:
        return
    found = Run(Path("runs") / name)
    kept = {"trial": trial.name, "options": list(trial.options)}
    kept |= {"after": trial.after} if trial.after else {}
    kept |= keep(found)
    file(experiment, trial).write_text(dump(kept), encoding="utf-8")
    for folder in ("checkpoints", "best", *(() if trial.leaves_model else ("model",))):
        shutil.rmtree(found.path / folder, ignore_errors=True)


def file(experiment: str, trial: Trial) -> Path:
    """What is kept of a trial."""
    return RESULTS / experiment / f"{trial.name}.json"


def read(experiment: str, trials: Sequence[Trial]) -> dict[str, Kept]:
    """What is kept, by the trial's name, in the order of `trials`."""
    files = {t.name: file(experiment, t) for t in trials}
    return {name: json.loads(f.read_text(encoding="utf-8")) for name, f in files.items() if f.exists()}


def of_run(run: Run) -> Kept:
    """What is kept of a run: curves, evaluations, and each test problem's verdicts."""
    summary, steps = run.summary, run.steps
    described = json.loads((run.path / "machine.json").read_text(encoding="utf-8"))
    return {
        "machine": named(described),
        "versions": summary["versions"],
        "seconds": round(summary["seconds"], 1),
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "steps": summary["steps"],
        "samples": summary["samples"],
        "curves": {name: [_short(line.get(name)) for line in steps] for name in CURVES},
        "evals": [{k: _short(v) for k, v in line.items()} for line in run.evals],
        "verdicts": verdicts(run.read("eval_rollouts")),
    }


def named(described: Mapping[str, Any]) -> str:
    """What machine.json says, in a line."""
    return f"{described['processor']}, {described['cores']} cores, {described['dtype']}"


def tested(settings: Config, step: int) -> Kept:
    """The verdicts on the greedy answers of `settings.model` to the test problems, and what made them."""
    pipeline = build_pipeline(settings)
    groups = pipeline.eval_groups(pipeline.problems("test", settings.eval.n))
    lines = [line | {"split": "test"} for line in rollout_lines(step, groups, None)]
    return {
        "machine": named(describe_machine(pipeline.policy.device, pipeline.policy.dtype)),
        "versions": package_versions(),
        "verdicts": verdicts(lines),
    }


def verdicts(lines: Iterable[Line]) -> Kept:
    """Each test problem's verdicts by step: {"ids": [...], "0": {"strict": "0110", "lenient": "1110"}}."""
    found: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        if line["split"] == "test":
            found[line["step"]].append(line)
    ids = {step: [line["problem_id"] for line in rows] for step, rows in found.items()}
    assert len({tuple(each) for each in ids.values()}) <= 1, "not the same problems"
    bits = {
        str(step): {kind: "".join(str(int(line[kind])) for line in rows) for kind in KINDS}
        for step, rows in found.items()
    }
    return {"ids": next(iter(ids.values()), [])} | bits


def right(kept: Kept, step: int, kind: str = "strict") -> list[bool]:
    """The verdicts on the test problems after `step`; -1 is the last."""
    steps = sorted(int(key) for key in kept["verdicts"] if key != "ids")
    return [bit == "1" for bit in kept["verdicts"][str(steps[step] if step < 0 else step)][kind]]


def ends(runs: Iterable[Kept], kind: str = "strict") -> list[float]:
    """Accuracy on the test problems after the last step."""
    return [fmean(right(run, -1, kind)) for run in runs]


def seed(run: Kept) -> str:
    """Of a trial named WHAT-SEED."""
    return str(run["trial"].rsplit("-", 1)[1])


def learned(run: Kept) -> list[str]:
    """A row under LEARNED; p is the larger of the two kinds'."""
    when = [(kind, step) for kind in KINDS for step in (0, -1)]
    cells = [share(right(run, step, kind)) for kind, step in when]
    p = max(mcnemar_p_value(right(run, 0, kind), right(run, -1, kind)) for kind in KINDS)
    return [seed(run), *cells, f"{p:.1g}", f"{run['seconds'] / 60:.1f}"]


def share(verdicts: Sequence[bool]) -> str:
    """Accuracy with its 95% interval, as a cell of a table."""
    low, high = wilson_interval(sum(verdicts), len(verdicts))
    return f"{fmean(verdicts):.1%} ({100 * low:.0f}–{100 * high:.0f})"


def against(ends: Mapping[str, Sequence[float]], base: str) -> dict[str, str]:
    """The mean of each setting's seeds less that of `base`, in points: "+1.5 (-8 to +11)".

    The intervals hold at once for all settings with 95% (C. W. Dunnett 1955; for two settings it is
    Student's). Seeds are taken as independent samples with the same spread in every setting: with three
    seeds one can do no better, and hardly check it.
    """
    others = {name: values for name, values in ends.items() if name != base}
    if not others:
        return {}
    interval = stats.dunnett(*others.values(), control=ends[base], rng=0).confidence_interval(0.95)
    middles = [fmean(values) - fmean(ends[base]) for values in others.values()]
    return {
        name: f"{100 * middle:+.1f} ({100 * low:+.0f} to {100 * high:+.0f})"
        for name, middle, low, high in zip(others, middles, interval.low, interval.high, strict=True)
    }


def by_seed(kept: Mapping[str, Kept]) -> dict[str, list[Kept]]:
    """Trials named WHAT-SEED, by what."""
    found: dict[str, list[Kept]] = defaultdict(list)
    for name, each in kept.items():
        found[name.rsplit("-", 1)[0]].append(each)
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(name: str, *parts: str) -> None:
    """docs/results/NAME.md."""
    text = "\n".join(parts)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def minutes(seconds: Iterable[float]) -> list[float]:
    """The time at the end of each step, from what each took."""
    return [spent / 60 for spent in itertools.accumulate(seconds)]


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Each value's mean with the ones before it, `width` of them at most."""
    return [fmean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def save(experiment: str, figure: Figure) -> None:
    """docs/results/EXPERIMENT.svg, the same bytes for the same figures."""
    figure.tight_layout()
    figure.savefig(RESULTS / f"{experiment}.svg", metadata={"Date": None})


def dump(kept: Kept) -> str:
    """JSON with a line for each curve, evaluation and verdict, so that a difference can be read."""
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {_lines(value)}" for key, value in kept.items()) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {json.dumps(v)}" for v in value) + "\n ]"
    return json.dumps(value)


def _short(value: Any) -> Any:
    """Four figures are enough of a curve."""
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
