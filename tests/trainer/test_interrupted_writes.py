"""A run that is killed at any of its writes, or whose disk refuses one, resumes as if nothing had happened.

`make test` takes a spread of the places, `make slow` all of them.
"""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from helpers.faults import Kills, Refuses, watching
from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite.api import resolve_config
from reinforce_lite.errors import FileError
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import open_run
from reinforce_lite.trainer import session
from reinforce_lite.trainer.checkpoint import KEPT
from reinforce_lite.types import Problem, Reward

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="no /proc to look descriptors up in"
)

SMALL = {
    "train.steps": 4,
    "train.save_every": 1,
    "train.seed": 2,
    "rollout.prompts_per_step": 2,
    "rollout.max_new_tokens": 4,
    "update.learning_rate": 0.05,
    "update.warmup_steps": 0,
    "eval.n": 2,
    "eval.validation_n": 6,
    "eval.every": 1,
}
"""With this seed validation is best after step 1, then after step 3: best/ is written, replaced and kept."""
TIMES = ("time/", "tokens_per_second/", "step_time", "memory/", "seconds")
LOGS = ("steps", "rollouts", "evals", "eval_rollouts")
IN_A_TEST, IN_AN_ERROR_TEST = 16, 8


class Graded(ToyTask):
    def reward(self, problem: Problem, completion: str) -> Reward:
        return Reward(sum(map(ord, completion)) % 7 / 6)


@dataclass(frozen=True)
class Scenario:
    """A run that was killed at each of its writes, and what comes of it when nothing happens."""

    settings: dict[str, Any]
    states: list[Path]
    n_writes: int
    straight: dict[str, Any]

    def train(self, name: str, resume: bool = False) -> Run:
        config = resolve_config(RECIPE, self.settings, Graded())
        return session.train(config, open_run(name, resume), Graded(), command="train tiny")


@pytest.fixture(scope="module")
def scenarios(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Scenario]]:
    """In a folder of their own, which stays the current one; without waiting for a disk."""
    folder = tmp_path_factory.mktemp("interrupted")
    four = SMALL | {"model.name": str(model_folder)}
    three = four | {"train.steps": 3}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process can't use the threads of its parent
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(os, "fsync", lambda _: None)
        fresh = _watched(four, "fresh")
        started = {state.name.partition("-")[2]: state for state in fresh.states}
        early = _watched(three, "early")
        yield {
            "fresh": fresh,
            "early": replace(early, states=early.states[-80:]),  # the end, where best/ is removed
            "resumed": _watched(four, "resumed", started["flush-steps.jsonl"]),
            "longer": _watched(four, "longer", Path("runs/early")),
        }
    torch.set_num_threads(threads)


def _watched(settings: dict[str, Any], name: str, begin: Path | None = None) -> Scenario:
    run = Path("runs", name).absolute()
    if begin:
        shutil.copytree(begin, run)
    kills = Kills(run, Path(f"copies of {name}").absolute())
    scenario = Scenario(settings, kills.states, 0, {})
    with watching(run, kills):
        scenario.train(name, resume=begin is not None)
    return replace(scenario, n_writes=len(kills.writes), straight=outcome(Run(Path("runs", name))))


def outcome(run: Run) -> dict[str, Any]:
    """All that two equal runs have in common, times excepted."""
    tensors = {
        str(file.relative_to(run.path)): load_file(file) for file in sorted(run.path.rglob("*.safetensors"))
    }
    summary = run.summary
    return {
        "names": {p.name for p in run.path.iterdir()} - {"rewound.jsonl"},
        "checkpoints": {p.name for p in (run.path / "checkpoints").iterdir()},
        "models": {p.name for folder in ("model", "best") for p in (run.path / folder).glob("*")},
        "cards": [(p.parent.name, p.read_text()) for p in sorted(run.path.glob("*/README.md"))],
        "tensors": tensors,
        "summary": {k: summary[k] for k in ("steps", "samples", "tokens", "stopped", "best_step", "evals")},
        **{
            log: [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in run.read(log)]
            for log in LOGS
        },
    }


def assert_equal(a: dict[str, Any], b: dict[str, Any], place: str) -> None:
    for key in a.keys() - {"tensors"}:
        assert a[key] == b[key], f"{key} after {place}"
    assert a["tensors"].keys() == b["tensors"].keys(), place
    for file, tensors in a["tensors"].items():
        assert tensors.keys() == b["tensors"][file].keys(), place
        assert all(torch.equal(tensors[n], b["tensors"][file][n]) for n in tensors), f"{file} after {place}"


def logged(run: Run) -> set[str]:
    """Every whole line of a run's logs, those that a resume set aside included."""
    lines = [(log, line) for log in LOGS for line in run.read(log)]
    lines += [(line["file"].removesuffix(".jsonl"), line["record"]) for line in run.read("rewound")]
    return {json.dumps(line) for line in lines}


def resume(scenario: Scenario, run: Run, place: str) -> None:
    """Resume, and compare with the run that was not interrupted; nothing that was logged is lost."""
    before = logged(run)
    assert_equal(outcome(scenario.train(run.path.name, resume=True)), scenario.straight, place)
    assert before <= logged(run), place
    shutil.rmtree(run.path)


def resume_after_kill(scenario: Scenario, state: Path) -> None:
    run = Run(Path("runs", f"killed-{state.name}"[:90]))
    if list(state.iterdir()):
        shutil.copytree(state, run.path)
    resume(scenario, run, f"{state.parent.name}/{state.name}")


def spread(items: list[Any], n: int) -> list[Any]:
    return [items[i * len(items) // n] for i in range(n)]


def all_states(scenarios: dict[str, Scenario]) -> list[tuple[Scenario, Path]]:
    return [(scenario, state) for scenario in scenarios.values() for state in scenario.states]


@pytest.mark.case(1)
@pytest.mark.case(5)
@pytest.mark.parametrize("part", range(IN_A_TEST))
def test_a_run_killed_at_a_write_resumes_to_the_bit(scenarios: dict[str, Scenario], part: int) -> None:
    resume_after_kill(*spread(all_states(scenarios), IN_A_TEST)[part])


@pytest.mark.slow
@pytest.mark.case(1)
@pytest.mark.case(5)
def test_a_run_killed_at_any_write_resumes_to_the_bit(scenarios: dict[str, Scenario]) -> None:
    for scenario, state in all_states(scenarios):
        resume_after_kill(scenario, state)


def test_places_of_a_kill_are_many_and_of_every_kind(scenarios: dict[str, Scenario]) -> None:
    """So that the tests above can't pass by looking at nothing."""
    names = " ".join(state.name for _, state in all_states(scenarios))
    assert len(names.split()) > 500
    for part in (
        *(
            "config.toml",
            "command.txt",
            "machine.json",
            "first_prompt.json",
            "summary.json",
            "report.html",
            ".lock",
        ),
        *("half-of-steps.jsonl", "half-of-eval_rollouts.jsonl", "half-of-model.safetensors"),
        *("half-of-state.safetensors", "half-of-manifest.json", "rename-.best.previous", "rename-best"),
        *(
            "rename-.best.incomplete",
            "rename-.step-1.incomplete",
            "remove-state.safetensors",
            "rename-rewound.jsonl",
        ),
    ):
        assert part in names
    assert all(len(s.straight["checkpoints"]) == KEPT for s in scenarios.values())


REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES)


def refusal(scenario: Scenario, name: str, refuses: Refuses) -> FileError | None:
    try:
        with watching(Path("runs", name).absolute(), refuses):
            scenario.train(name)
    except FileError as error:
        return error
    return None


def resume_after_refusal(scenario: Scenario, at: int) -> None:
    """From the nth write on the disk refuses; then it works again."""
    name, number = f"refused-{at}", REFUSALS[at % len(REFUSALS)]
    refuses = Refuses(number, at)
    if error := refusal(scenario, name, refuses):
        assert os.strerror(number) in error.cause
        assert error.remedy
        assert "\n" not in error.cause + error.remedy
    elif refuses.refused:
        harmless = ("report.html", ".previous", ".trial-save", ".lock")  # opened again by filelock
        is_harmless = any(part in str(refuses.refused.path) for part in harmless)
        assert is_harmless or refuses.refused.kind == "flush", refuses.refused  # after a report
    resume(scenario, Run(Path("runs", name)), str(refuses.refused))


@pytest.mark.case(2)
@pytest.mark.case(3)
@pytest.mark.parametrize("part", range(IN_AN_ERROR_TEST))
def test_a_run_whose_disk_refuses_a_write_resumes_to_the_bit(
    scenarios: dict[str, Scenario], part: int
) -> None:
    fresh = scenarios["fresh"]
    resume_after_refusal(fresh, spread(list(range(1, fresh.n_writes + 1)), IN_AN_ERROR_TEST)[part])


@pytest.mark.slow
@pytest.mark.case(2)
@pytest.mark.case(3)
def test_a_run_whose_disk_refuses_any_write_resumes_to_the_bit(scenarios: dict[str, Scenario]) -> None:
    for at in range(1, scenarios["fresh"].n_writes + 1):
        resume_after_refusal(scenarios["fresh"], at)


def test_a_log_line_that_reaches_the_disk_half_way(
    scenarios: dict[str, Scenario], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the middle of a line, and then the half can't be cut off either."""
    fresh, write = scenarios["fresh"], os.write
    calls = 0

    def run_full(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: len(data) // 2] if calls == 9 else data)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for fails in (False, True):
        with monkeypatch.context() as patch:
            calls = 0
            patch.setattr(os, "write", run_full)
            if fails:
                patch.setattr(os, "ftruncate", fail)
            with pytest.raises(FileError):
                fresh.train("torn")
        torn = {file: file.read_bytes()[-1:] != b"\n" for file in Path("runs/torn").glob("*.jsonl")}
        assert any(torn.values()) == fails
        resume(fresh, Run(Path("runs/torn")), "a torn line")


@pytest.mark.parametrize(
    "error",
    [
        Exception("No space left on device (os error 28)"),  # as tokenizers raises it
        OSError(28, "No space left on device"),
    ],
)
def test_a_model_that_the_disk_has_no_room_for(
    scenarios: dict[str, Scenario], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = scenarios["fresh"]

    save = PreTrainedTokenizerFast.save_pretrained

    def full(tokenizer: Any, folder: Path, **options: Any) -> Any:
        if ".trial-save" in str(folder):  # there was room for a small one
            return save(tokenizer, folder, **options)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
        with pytest.raises(FileError, match="can't write runs/full/best: No space left") as caught:
            fresh.train("full")
    assert "--run full --resume" in caught.value.remedy
    resume(fresh, Run(Path("runs/full")), "a full disk")


def seconds_of(scenario: Scenario) -> float:
    """How long a run takes that is left alone."""
    start = time.perf_counter()
    shutil.rmtree(scenario.train("timed").path)
    return time.perf_counter() - start


def kill_at_random(scenario: Scenario, seconds: float, random: Random, name: str) -> int:
    """Two processes in turn are killed at random moments, then the run is resumed. How many were not done yet."""
    kills = 0
    for _ in range(2):
        end = time.perf_counter() + random.uniform(0.0, seconds)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                scenario.train(name, resume=True)
                status = 0
            finally:
                os._exit(status)
        done, status = 0, 0
        while not done and time.perf_counter() < end:
            time.sleep(0.002)
            done, status = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        kills += status == signal.SIGKILL
    resume(scenario, Run(Path("runs", name)), f"{kills} kills")
    return kills


def random_with_a_seed() -> Random:
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"repeat with KILL_SEED={seed}")  # pytest shows it where the test fails
    return Random(seed)


@pytest.mark.case(1)
@pytest.mark.case(9)
def test_a_process_killed_at_random_moments_resumes_to_the_bit(scenarios: dict[str, Scenario]) -> None:
    fresh = scenarios["fresh"]
    kill_at_random(fresh, seconds_of(fresh), random_with_a_seed(), "random")


@pytest.mark.slow
@pytest.mark.case(1)
def test_a_hundred_processes_killed_at_random_moments_resume_to_the_bit(
    scenarios: dict[str, Scenario],
) -> None:
    fresh, random, kills, runs = scenarios["fresh"], random_with_a_seed(), 0, 0
    seconds = seconds_of(fresh)
    while kills < 100:
        kills += kill_at_random(fresh, seconds, random, f"random-{runs}")
        runs += 1
        assert runs < 1000
