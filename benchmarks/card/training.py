"""Runs with real weights."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from card.shared import LIMIT, TINY, report

from reinforce_lite.models import embedded

KEEP = Path.home() / "keep"
"""What stays on the machine between two calls."""
CARRIED = Path(__file__).parents[2] / ".card"
"""What a call brings with it."""


def train(*settings: str) -> None:
    """The quickstart with real weights and these settings of RUNS (default: the first).

    Three seeds each, all runs concurrently.
    """
    start = time.perf_counter()
    _load_embedded_model()
    report(model_seconds=time.perf_counter() - start)
    KEEP.mkdir(parents=True, exist_ok=True)
    runs = [(setting, seed) for setting in settings or list(RUNS)[:1] for seed in range(2 if TINY else 3)]
    started = {(s, seed): _start_run(s, seed, ("quickstart", *RUNS[s])) for s, seed in runs}
    failed = [_run_name(*run) for run, process in started.items() if process.wait()]
    for setting, seed in runs:
        if _run_name(setting, seed) not in failed:
            _report_run(setting, seed)
    for name in failed:
        print((KEEP / f"{name}.log").read_text()[-1500:], flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


RUNS: dict[str, tuple[str, ...]] = {
    "full": (),
    "rank8": ("--adapter.rank", "8", "--update.learning-rate", "1e-4"),
    "rank1": ("--adapter.rank", "1", "--update.learning-rate", "1e-4"),
    "rank32": ("--adapter.rank", "32", "--update.learning-rate", "1e-4"),
    "rank8-slow": ("--adapter.rank", "8", "--update.learning-rate", "5e-5"),
    "rank8-fast": ("--adapter.rank", "8", "--update.learning-rate", "2e-4"),
}
"""Options of the quickstart by setting."""
TINY_RUN = (
    *("--train.steps", "1", "--eval.n", "2", "--eval.validation-n", "2"),
    *("--rollout.prompts-per-step", "2", "--rollout.group-size", "3", "--rollout.max-new-tokens", "8"),
)


def _load_embedded_model() -> None:
    """SmolLM2-135M from the two halves of its GGUF file, if prepare.sh left them, or from the cache."""
    halves = (KEEP / "half1", CARRIED / "half2" / "half2")
    if all(half.exists() for half in halves):
        os.environ["REINFORCE_LITE_CACHE"] = str(KEEP / "cache")
        folder = embedded.cache_folder() / embedded.EMBEDDED_NAME
        if not folder.is_dir():
            _convert(halves, folder)
    embedded.embedded_folder()


def _convert(parts: Iterable[Path], folder: Path) -> None:
    """Join the parts of a GGUF file, and convert it to a Hugging Face folder."""
    gguf = KEEP / "model.gguf"
    with gguf.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    folder.parent.mkdir(parents=True, exist_ok=True)
    embedded._convert(gguf, folder)
    gguf.unlink()


def keep(*files: str) -> None:
    """Keep files for a later call."""
    KEEP.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, KEEP)
    report(kept=sorted(path.name for path in KEEP.iterdir()))


def gsm8k(*options: str) -> None:
    """A 0.5B on GSM8K for as long as the part may take, with these options of `train`.

    The model is the recipe's. Where `keep` left a GGUF file in pieces 0.5b-0, 0.5b-1, … it is that one, and
    the data are the folder gsm8k, if it was kept (as train.jsonl and test.jsonl).
    """
    start = time.perf_counter()
    pieces = sorted(KEEP.glob("0.5b-*"))
    if pieces:
        folder = KEEP / "0.5b"
        if not folder.is_dir():
            _convert(pieces, folder)
        options = ("--model.name", str(folder), *options)
    if (KEEP / "train.jsonl").exists():
        options = ("--task.path", str(KEEP), *options)
    report(model_seconds=time.perf_counter() - start)
    hours = (LIMIT - (time.perf_counter() - start)) / 3600
    process = _start_run("gsm8k", 0, ("gsm8k-0.5b", "--train.hours", f"{0.9 * hours:.4f}", *options))
    if process.wait():
        sys.exit((KEEP / "gsm8k-0.log").read_text()[-1500:])
    _report_run("gsm8k", 0)


def _run_name(setting: str, seed: int) -> str:
    return f"{setting}-{seed}"


def _start_run(setting: str, seed: int, options: Sequence[str]) -> "subprocess.Popen[bytes]":
    name = _run_name(setting, seed)
    shutil.rmtree(KEEP / "runs" / name, ignore_errors=True)
    command = [sys.executable, "-m", "reinforce_lite", "train", *options]
    command += ["--run", name, "--train.seed", str(seed), *(TINY_RUN if TINY else ())]
    with (KEEP / f"{name}.log").open("wb") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=KEEP, stdout=log, stderr=log, env=environment)


def _report_run(setting: str, seed: int) -> None:
    folder = KEEP / "runs" / _run_name(setting, seed)
    summary = json.loads((folder / "summary.json").read_text())
    steps, evals = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("steps.jsonl", "evals.jsonl")
    )
    names = {"step": "step_time", "rollout": "time/rollout", "update": "time/update"}
    kept = ("self_check", "memory", "adapter", "rollout_tokens_per_second", "train_tokens_per_second")
    report(
        setting=setting,
        seed=seed,
        seconds=summary["seconds"],
        before=summary["evals"]["before"],
        after=summary["evals"]["after"],
        validation=[(e["step"], e["strict"]) for e in evals if e["split"] == "validation"],
        rewards=[round(line["reward"], 2) for line in steps],
        **{f"{key}_seconds": [round(line[name], 3) for line in steps] for key, name in names.items()},
        logprob_entropy=[round(line["entropy"], 3) for line in steps],
        **{key: summary.get(key) for key in kept},
    )
