"""What the experiments share: trials, the record of each, tables and plots.

    Trial ──reinforce-lite train──▶ runs/EXPERIMENT-NAME/ ──▶ record docs/results/EXPERIMENT/NAME.json
                                                                         │
                                   docs/results/EXPERIMENT.md, .svg ◀────┘ the experiment's table and plot
                                        │
                                docs/experiments.md ◀── docs/experiments.py

A trial is a command of its own, so anyone who types the command gets the same run. A trial that has a record
is not run again; one that the time limit stops saves a checkpoint and resumes the next time. Tables and plots
are written from the records alone:

    python experiments/NAME.py --hours 2        # run missing trials, two hours at most; write the table
    python experiments/NAME.py --hours 0        # write the table from the records

Strict verdicts are the default. The records of parts, word_problems and gsm8k have lenient
verdicts by a rule that was given up, and no texts to compute them again: no table or plot shows them.

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
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.metrics import completion_records
from reinforce_lite.utils.environment import describe_machine, package_versions

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "reinforce-lite", "svg.fonttype": "none"}

RESULTS = Path(__file__).parent.parent / "docs" / "results"
"""Records, tables and plots."""
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
    "questions_asked",
    "live_groups",
]
_FOLDER = "qwen2.5-coder-0.5b-instruct"
HALF_BILLION = f"./{_FOLDER}" if Path(_FOLDER).is_dir() else "Qwen/Qwen2.5-Coder-0.5B-Instruct"
"""The model of half a billion parameters: a folder here if it exists, otherwise the hub's."""
GSM8K = "gsm8k" if Path("gsm8k").is_dir() else ""
"""`task.path` of GSM8K: a folder here if it exists, otherwise the hub's."""
KINDS = ("strict", "lenient")
"""The verdicts that a record has for each completion."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of an experiment."""

    name: str
    """Names the run and the record."""
    options: tuple[str, ...]
    """Arguments of `reinforce-lite train`."""
    script: str = ""
    """A file in this folder to run instead of `reinforce-lite train`; it gets the options and --out FILE."""
    after: str = ""
    """The trial whose model this one starts from; empty: the model of its recipe."""
    leaves_model: bool = False
    """Whether its model is not deleted, since another trial starts from it."""


def main(
    experiment: str,
    trials: Sequence[Trial],
    write: Callable[[Mapping[str, Record]], None],
    make_record: Callable[[Run], Record] | None = None,
    prepare: Callable[[], None] | None = None,
    script: Callable[[str], Record] | None = None,
) -> None:
    """The command line of an experiment.

    `write` writes table and plot from the records by trial name; `make_record` turns a finished run into a
    record (`record_run` by default); `prepare` writes what the trials need before they start.
    `script` turns the option of a trial whose script the experiment is into its record.
    """
    if script and "--out" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("option")
        parser.add_argument("--out", type=Path, required=True)
        given = parser.parse_args()
        given.out.write_text(dump_json(script(given.option)), encoding="utf-8")
        return
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument(
        "--hours", type=float, default=24.0, help="stop after this time; the same command resumes"
    )
    parser.add_argument(
        "--parallel", type=int, default=1, help="trials that run concurrently and share the cores"
    )
    parser.add_argument("--only", nargs="+", default=[], help="trials whose names start with one of these")
    arguments = parser.parse_args()
    wanted = [t for t in trials if not arguments.only or t.name.startswith(tuple(arguments.only))]
    if prepare and arguments.hours:
        prepare()
    complete = run_trials(experiment, wanted, arguments.hours, arguments.parallel, make_record or record_run)
    if records := read_records(experiment, trials):
        write(records)
    if not complete:
        sys.exit("not all trials are done: run the same command again to continue")


def run_trials(
    experiment: str,
    trials: Sequence[Trial],
    hours: float,
    parallel: int,
    make_record: Callable[[Run], Record],
) -> bool:
    """Run the trials that have no record, `parallel` at a time; return whether all are done."""
    end = time.monotonic() + 3600 * hours
    (RESULTS / experiment).mkdir(parents=True, exist_ok=True)
    waiting = [t for t in trials if not record_file(experiment, t).exists()]
    running: dict[str, subprocess.Popen[bytes]] = {}
    by_name = {t.name: t for t in waiting}
    while (ready := _ready(experiment, waiting, end)) or running:
        for trial in ready[: parallel - len(running)]:
            waiting.remove(trial)
            running[trial.name] = _start(experiment, trial, parallel)
        if time.monotonic() >= end:
            for process in running.values():
                process.send_signal(signal.SIGTERM)
            for process in running.values():
                process.wait()
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                _finish(experiment, by_name[name], process.returncode, make_record)
        time.sleep(1)
    if time.monotonic() < end:
        for trial in waiting:
            model = _model(experiment, trial)
            print(
                f"{trial.name} needs {model}, the model of {trial.after}: if that trial is done without it, "
                f"delete its record and {model.parent} to run it again",
                flush=True,
            )
    return all(record_file(experiment, t).exists() for t in trials)


def _ready(experiment: str, waiting: Iterable[Trial], end: float) -> list[Trial]:
    """The trials that can start now."""
    if time.monotonic() >= end:
        return []
    return [t for t in waiting if not t.after or _model(experiment, t).is_dir()]


def _model(experiment: str, trial: Trial) -> Path:
    """The model that it starts from; it exists once the other trial is done."""
    return Path("runs") / f"{experiment}-{trial.after}" / "model"


def _start(experiment: str, trial: Trial, parallel: int) -> "subprocess.Popen[bytes]":
    name = f"{experiment}-{trial.name}"
    if trial.script:
        script = str(Path(__file__).with_name(trial.script))
        command = [sys.executable, script, *trial.options, "--out", str(record_file(experiment, trial))]
    else:
        model = ("--model.name", str(_model(experiment, trial))) if trial.after else ()
        command = [sys.executable, "-m", "reinforce_lite", "train", *trial.options, *model]
        command += ["--run", name, "--resume"]
    Path("runs").mkdir(exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // parallel))
    print(f"{name}: {' '.join(command[1:]).removeprefix('-m reinforce_lite ')}", flush=True)
    with Path(f"runs/{name}.log").open("ab") as log:
        environment = {"OMP_NUM_THREADS": threads} | os.environ
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _finish(experiment: str, trial: Trial, status: int, make_record: Callable[[Run], Record]) -> None:
    """Write the record of a finished run, and delete its checkpoints and models."""
    name = f"{experiment}-{trial.name}"
    if status not in (0, 130, 143):
        print(f"{name} failed with status {status}: runs/{name}.log", flush=True)
    if status or trial.script:
        return
    run = Run(Path("runs") / name)
    record: Record = {"trial": trial.name, "options": list(trial.options)}
    record |= {"after": trial.after} if trial.after else {}
    record |= make_record(run)
    record_file(experiment, trial).write_text(dump_json(record), encoding="utf-8")
    for folder in ("checkpoints", "best", *(() if trial.leaves_model else ("model",))):
        shutil.rmtree(run.path / folder, ignore_errors=True)


def record_file(experiment: str, trial: Trial) -> Path:
    """The file of a trial's record."""
    return RESULTS / experiment / f"{trial.name}.json"


def read_records(experiment: str, trials: Sequence[Trial]) -> dict[str, Record]:
    """The records that exist, by trial name, in the order of `trials`."""
    files = {t.name: record_file(experiment, t) for t in trials}
    return {name: json.loads(f.read_text(encoding="utf-8")) for name, f in files.items() if f.exists()}


def record_run(run: Run) -> Record:
    """The record of a run: curves, evaluations, and the verdicts on each test problem."""
    summary, steps = run.summary, run.steps
    machine = json.loads((run.path / "machine.json").read_text(encoding="utf-8"))
    return {
        "machine": machine_name(machine),
        "versions": summary["versions"],
        "seconds": round(summary["seconds"], 1),
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "steps": summary["steps"],
        "samples": summary["samples"],
        "curves": {name: [_short(line.get(name)) for line in steps] for name in CURVES},
        "evals": [{k: _short(v) for k, v in line.items()} for line in run.evals],
        "verdicts": verdicts(run.read("eval_rollouts")),
    }


def machine_name(machine: Mapping[str, Any]) -> str:
    """The contents of machine.json in a line."""
    return f"{machine['processor']}, {machine['cores']} cores, {machine['dtype']}"


def evaluate_model(config: Config, step: int) -> Record:
    """The verdicts on greedy completions of `config.model` to the test problems; machine and versions."""
    pipeline = build_pipeline(config)
    groups = pipeline.eval_groups(pipeline.problems("test", config.eval.n))
    lines = completion_records(step, groups, split="test")
    return {
        "machine": machine_name(describe_machine(pipeline.policy.device, pipeline.policy.dtype)),
        "versions": package_versions(),
        "verdicts": verdicts(lines),
    }


def verdicts(lines: Iterable[Record]) -> Record:
    """Verdicts on the test problems by step: {"ids": [...], "0": {"strict": "0110", "lenient": "1110"}}.

    A task without a lenient verdict has none here.
    """
    by_step: dict[int, list[Record]] = defaultdict(list)
    for line in lines:
        if line["split"] == "test":
            by_step[line["step"]].append(line)
    ids = {step: [line["problem_id"] for line in rows] for step, rows in by_step.items()}
    assert len({tuple(i) for i in ids.values()}) <= 1, "different problems"
    bits = {
        str(step): {
            kind: "".join(str(int(line[kind])) for line in rows)
            for kind in KINDS
            if rows[0][kind] is not None
        }
        for step, rows in by_step.items()
    }
    return {"ids": next(iter(ids.values()), [])} | bits


def correct(record: Record, step: int, kind: str = "strict") -> list[bool]:
    """The verdicts on the test problems after `step`; -1 is the last step."""
    steps = sorted(int(key) for key in record["verdicts"] if key != "ids")
    return [bit == "1" for bit in record["verdicts"][str(steps[step] if step < 0 else step)][kind]]


def final_accuracies(runs: Iterable[Record], kind: str = "strict") -> list[float]:
    """Accuracy on the test problems after the last step."""
    return [fmean(correct(run, -1, kind)) for run in runs]


def validation(run: Record) -> dict[int, float]:
    """Strict accuracy on the validation problems by step."""
    return {e["step"]: e["strict"] for e in run["evals"] if e["split"] == "validation"}


def best_constant(run: Record) -> float:
    """What one and the same answer would reach on the test problems."""
    return next(float(e["best_constant"]) for e in run["evals"] if e["split"] == "test")


def seed_of(run: Record) -> str:
    """The seed of a trial named SETTING-SEED."""
    return str(run["trial"].rsplit("-", 1)[1])


def result_header(kinds: Sequence[str] = KINDS) -> list[str]:
    """The header of a table of `result_row`s."""
    accuracies = (f"{kind} {when}" for kind in kinds for when in ("before", "after"))
    return ["seed", *accuracies, "p (paired)", "minutes"]


def result_row(run: Record, kinds: Sequence[str] = KINDS) -> list[str]:
    """A row under `result_header`; p is the largest of those of the kinds."""
    points = [(kind, step) for kind in kinds for step in (0, -1)]
    cells = [accuracy_cell(correct(run, step, kind)) for kind, step in points]
    p = max(mcnemar_p_value(correct(run, 0, kind), correct(run, -1, kind)) for kind in kinds)
    return [seed_of(run), *cells, f"{p:.1g}", f"{run['seconds'] / 60:.1f}"]


def accuracy_cell(verdicts: Sequence[bool]) -> str:
    """Accuracy with its 95% interval, as a cell of a table."""
    low, high = wilson_interval(sum(verdicts), len(verdicts))
    return f"{fmean(verdicts):.1%} ({100 * low:.0f}–{100 * high:.0f})"


def differences(accuracies: Mapping[str, Sequence[float]], base: str) -> dict[str, str]:
    """Each setting's mean over seeds minus that of `base`, in points: "+1.5 (-8 to +11)".

    The 95% intervals hold for all settings simultaneously (Dunnett 1955, https://doi.org/10.2307/2281208;
    with one setting and the base they are Student's). Seeds are assumed to be independent samples with the
    same variance in every setting, which three seeds cannot check.
    """
    others = {name: values for name, values in accuracies.items() if name != base}
    if not others:
        return {}
    interval = stats.dunnett(*others.values(), control=accuracies[base], rng=0).confidence_interval(0.95)
    means = [fmean(values) - fmean(accuracies[base]) for values in others.values()]
    return {
        name: f"{100 * mean:+.1f} ({100 * low:+.0f} to {100 * high:+.0f})"
        for name, mean, low, high in zip(others, means, interval.low, interval.high, strict=True)
    }


def by_setting(records: Mapping[str, Record]) -> dict[str, list[Record]]:
    """The records of trials named SETTING-SEED, by setting."""
    grouped: dict[str, list[Record]] = defaultdict(list)
    for name, record in records.items():
        grouped[name.rsplit("-", 1)[0]].append(record)
    return grouped


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_page(name: str, *parts: str) -> None:
    """Write docs/results/NAME.md."""
    text = "\n".join(parts)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def machine_lines(runs: Iterable[Record]) -> list[str]:
    """The machines that runs ran on, as the last parts of a page."""
    return [f"Machine: {name}.\n" for name in sorted({run["machine"] for run in runs})]


def cumulative_minutes(seconds: Iterable[float]) -> list[float]:
    """Minutes at the end of each step, from the seconds of each."""
    return [spent / 60 for spent in itertools.accumulate(seconds)]


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """The trailing mean over up to `width` values."""
    return [fmean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def save_figure(experiment: str, figure: Figure) -> None:
    """Write docs/results/EXPERIMENT.svg; the same figures give the same bytes."""
    figure.tight_layout()
    figure.savefig(RESULTS / f"{experiment}.svg", metadata={"Date": None})


def dump_json(record: Record) -> str:
    """JSON with a line for each curve, evaluation and verdict, so that a diff can be read."""
    return (
        "{\n" + ",\n".join(f" {json.dumps(key)}: {_lines(value)}" for key, value in record.items()) + "\n}\n"
    )


def _lines(value: Any) -> str:
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {json.dumps(v)}" for v in value) + "\n ]"
    return json.dumps(value)


def _short(value: Any) -> Any:
    """Four significant figures are enough for a curve."""
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
