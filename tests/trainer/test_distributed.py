"""Several processes take the steps of one: same completions, same rewards, same weights up to rounding.

The processes talk as those of torchrun do; `test_torchrun` starts them by it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import reinforce_lite as rl
from helpers import processes
from helpers.paths import RECIPE
from reinforce_lite import Problem
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.errors import (
    DoesNotFitError,
    FileError,
    LostProcessError,
    ReinforceLiteError,
    StoppedError,
    UsageError,
)
from reinforce_lite.learner import sharded_updater
from reinforce_lite.learner.optimizers import AdamW
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models import distributed, peers, watch
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.checkpoint import Checkpointer, checkpoint_steps
from reinforce_lite.trainer.trainer import Trainer
from reinforce_lite.utils import clock, memory

STEPS = 4


class Letters:
    """A reward with all kinds of groups: from the letters of the response, and 0 for every third question."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def problems(self, split: str) -> Sequence[Problem]:
        """24 questions, others in each split."""
        numbers = range(self.first, self.first + 24)
        return [Problem(f"{split}-{n}", f"{n} + {len(split)}?", str(n)) for n in numbers]

    def reward(self, problem: Problem, response: str) -> float:
        """A number in [0, 1)."""
        return sum(map(ord, response)) % 7 / 7 if int(problem.gold) % 3 else 0.0


PLACES: dict[str, tuple[type, str]] = {
    "rollout": (NativeEngine, "generate"),
    "update": (Updater, "_scaled_gradient"),
    "checkpoint": (Checkpointer, "save"),
    "pass": (Updater, "_backward"),
    "in between": (Trainer, "_weigh"),
}


ERRORS = {
    "error": ReinforceLiteError("this rank has had enough"),
    "bug": ZeroDivisionError("division by zero"),
    "memory": torch.OutOfMemoryError("no memory for a pass"),
}


def fail(rank: int, place: str, fault: str) -> None:
    """Let a rank raise an error, hang, or send itself a signal, at this place of the third step."""
    owner, name = PLACES[place]
    original, steps = getattr(owner, name), 0

    def failing(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += name != "generate" or args[1].samples == 4  # no evaluation, no self-check
        if steps == 3 and fault in ERRORS:
            raise ERRORS[fault]
        while steps == 3 and fault == "spin":
            pass
        if steps == 3 and fault == "hang":
            threading.Event().wait()
        if steps == 3:
            os.kill(os.getpid(), getattr(signal, f"SIG{fault.upper()}"))
        return original(self, *args, **options)

    if os.environ["RANK"] == str(rank):
        setattr(owner, name, failing)  # in a process of its own


def train(
    name: str, settings: dict[str, Any], steps: int = STEPS, resume: bool = False, *failure: Any
) -> None:
    """Train the tiny model in this process; `failure` are the arguments of `fail`."""
    if failure and failure[-1] in ("kill", "stop"):
        peers.LOST_SECONDS = 8.0
    if failure and failure[-1] in ("hang", "spin"):
        watch.STUCK_SECONDS = 3.0
    overrides = {"train.save_every": 1, **settings, "rollout.engine": "native", "train.steps": steps}
    if failure:
        fail(*failure)
    rl.train(str(RECIPE), overrides, task=Letters(), run=name, resume=resume, quiet=True)


def weights(name: str) -> torch.Tensor:
    """All weights of a run's model, in one vector."""
    tensors = load_file(Path("runs") / name / "model" / "model.safetensors")
    return torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])


def assert_equal_runs(name: str, other: str, untrained: Path) -> None:
    """The lines are equal, and the weights up to rounding."""
    runs = Run(Path("runs") / name), Run(Path("runs") / other)
    for log in ("rollouts", "eval_rollouts", "evals"):
        lines, expected = ([line | {"seconds": 0} for line in run.read(log)] for run in runs)
        assert lines == expected
    moved = weights(other) - torch.cat(
        [t.double().flatten() for _, t in sorted(load_file(untrained / "model.safetensors").items())]
    )
    assert moved.norm() > 0.1
    assert (weights(name) - weights(other)).norm() < 1e-5 * weights(other).norm()
    assert (weights(name) - weights(other)).norm() < 1e-4 * moved.norm()


@pytest.mark.parametrize(
    ("n", "sharded"), [(2, False), (3, False), pytest.param(4, True, marks=pytest.mark.slow)]
)
def test_several_processes_equal_one(
    n: int, sharded: bool, settings: dict[str, Any], model_folder: Path
) -> None:
    train("one", settings)
    update = settings | {"update.shard_optimizer": sharded}
    assert processes.run(n, train, "several", update) == [None] * n
    assert_equal_runs("several", "one", model_folder)
    with_signal = [round(5 * (1 - line["frac_reward_zero_std"])) for line in Run(Path("runs/one")).steps]
    assert any(count % n for count in with_signal), "the shares should be uneven"


@pytest.mark.parametrize(
    ("n", "update"),
    [
        (2, {}),
        (2, {"update.micro_batch_tokens": 100, "rollout.group_size": 5}),
        pytest.param(2, {"update.activation_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(3, {}, marks=pytest.mark.slow),
        pytest.param(4, {}, marks=pytest.mark.slow),
    ],
)
def test_several_processes_with_sharded_weights_equal_one(
    n: int, update: dict[str, Any], settings: dict[str, Any], model_folder: Path
) -> None:
    """With few tokens a completion is a pass of its own, and some processes have fewer than others."""
    train("one", settings | update)
    sharded = settings | update | {"update.shard_weights": True}
    passes = processes.run(n, train_and_count_passes, "several", sharded)
    assert_equal_runs("several", "one", model_folder)
    assert len({len(own) for own in passes}) == 1, "all take equally many"
    assert any(map(any, passes)) == ("rollout.group_size" in update or n > 2), "some are idle"


def train_and_count_passes(name: str, settings: dict[str, Any]) -> list[bool]:
    """Train; whether each of this process's passes is idle."""
    idle: list[bool] = []
    original = Updater._backward

    def backward(self: Updater, batch: Any, *args: Any) -> Any:
        idle.append(batch is sharded_updater.IDLE)
        return original(self, batch, *args)

    setattr(Updater, "_backward", backward)  # noqa: B010 -- in a process of its own
    train(name, settings)
    return idle


@pytest.mark.slow
@pytest.mark.parametrize(
    "update",
    [
        {},
        {"model.dtype": "bfloat16"},
        {"model.dtype": "bfloat16", "update.optimizer_state": "16-bit"},
        {"adapter.rank": 4},
    ],
    ids=["float32", "masters", "16-bit", "adapter"],
)
def test_sharded_optimizer_state_changes_nothing(update: dict[str, Any], settings: dict[str, Any]) -> None:
    """With it N processes do what they do without it; the checkpoint has the same tensors.

    In thirds of weights the CPU's vectors end elsewhere, which changes rounding.
    """
    n, update = 3 if "adapter.rank" in update else 2, settings | update
    assert processes.run(n, train, "whole", update) == [None] * n
    assert processes.run(n, train, "sharded", update | {"update.shard_optimizer": True}) == [None] * n
    whole, sharded = (
        load_file(Path(f"runs/{name}/checkpoints/step-4/state.safetensors")) for name in ("whole", "sharded")
    )
    assert whole.keys() == sharded.keys()
    assert any(name.startswith("exp_avg_sq/") for name in whole)
    for name, tensor in whole.items():
        assert sharded[name].shape == tensor.shape
        assert sharded[name].dtype == tensor.dtype
        assert (sharded[name].double() - tensor).norm() <= (0 if n == 2 else 1e-5) * tensor.double().norm()


def held(settings: dict[str, Any]) -> tuple[int, int]:
    """How many numbers this process's optimizer has: of master weights, and of first moments.

    With a dry run before, as on a card.
    """
    setattr(memory, "available_bytes", lambda: 0)  # noqa: B010 -- in a process of its own
    seen: list[Updater] = []
    original = Updater.apply_gradient

    def apply(self: Updater, *args: Any) -> bool:
        seen[:] = [self]
        return original(self, *args)

    setattr(Updater, "apply_gradient", apply)  # noqa: B010 -- in a process of its own
    train("sharded", settings, 2)
    assert Run(Path("runs/sharded")).summary["memory"]["dry_run_bytes"] or not distributed.is_main()
    optimizer: Any = seen[0].optimizer
    moments = [state["exp_avg"].numel() for state in optimizer.optimizer.state.values()]
    return sum(w.numel() for w in seen[0].master_weights.values()), sum(moments)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["update.shard_optimizer", "update.shard_weights"])
def test_each_process_holds_a_part_of_the_optimizer_state(
    option: str, settings: dict[str, Any], model_folder: Path
) -> None:
    tensors = load_file(model_folder / "model.safetensors").values()
    numbers = sum(t.numel() for t in tensors)
    units = [t[0].numel() if option == "update.shard_weights" else 1 for t in tensors]
    largest = sum(ceil(t.numel() / unit / 3) * unit for t, unit in zip(tensors, units, strict=True))
    sharded = {"model.dtype": "bfloat16", option: True}
    parts = processes.run(3, held, settings | sharded)
    assert sum(masters for masters, _ in parts) == numbers
    assert sum(moments for _, moments in parts) == numbers
    assert max(max(part) for part in parts) == largest, "a third of each tensor, or of its rows, rounded up"


@pytest.mark.parametrize(
    ("option", "place"), [("update.shard_optimizer", "update"), ("update.shard_weights", "rollout")]
)
def test_sharded_state_resumes_with_other_numbers_of_processes(
    option: str, place: str, settings: dict[str, Any]
) -> None:
    """Also stopped by a signal, which saves the last step: one process, two, three, and one again."""
    sharded = settings | {option: True}
    train("more", sharded, 1)
    errors = processes.run(2, train, "more", sharded, 9, True, 1, place, "term")
    assert [type(error) for error in errors] == [StoppedError] * 2
    assert checkpoint_steps(Path("runs/more/checkpoints")) == [2, 3]
    processes.run(3, train, "more", sharded, 4, True)
    train("more", settings, 5, True)
    train("one", settings, 5)
    rollouts = [list(Run(Path("runs") / name).read("rollouts")) for name in ("more", "one")]
    assert rollouts[0] == rollouts[1]
    assert (weights("more") - weights("one")).norm() < 1e-5 * weights("one").norm()


@pytest.mark.parametrize(
    ("place", "fault", "expected", "saved"),
    [
        ("rollout", "error", ReinforceLiteError, [2]),  # all take part in saving
        pytest.param("in between", "error", ReinforceLiteError, [2], marks=pytest.mark.slow),
        pytest.param("rollout", "bug", LostProcessError, [], marks=pytest.mark.slow),
        pytest.param("rollout", "kill", LostProcessError, [], marks=pytest.mark.slow),
    ],
)
def test_sharded_state_that_has_lost_a_process_is_not_saved(
    place: str, fault: str, expected: type, saved: list[int], settings: dict[str, Any]
) -> None:
    sharded = settings | {"update.shard_optimizer": True, "train.save_every": 100}
    errors = processes.run(2, train, "failing", sharded, STEPS, False, 1, place, fault)
    assert type(errors[0]) is expected
    assert checkpoint_steps(Path("runs/failing/checkpoints")) == saved


@pytest.mark.parametrize(
    ("fault", "main", "other"),
    [
        ("kill", LostProcessError, -signal.SIGKILL),
        ("memory", LostProcessError, DoesNotFitError),
        pytest.param("term", StoppedError, StoppedError, marks=pytest.mark.slow),
        pytest.param("bug", LostProcessError, ZeroDivisionError, marks=pytest.mark.slow),
        pytest.param("error", LostProcessError, ReinforceLiteError, marks=pytest.mark.slow),
        pytest.param("stop", LostProcessError, -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_fault_in_a_pass_of_sharded_weights_ends_all(
    fault: str, main: type, other: Any, settings: dict[str, Any]
) -> None:
    """One process fails while the other waits in FSDP2's transfer for its weights.

    A transfer may take ten minutes, so only one that fails when that process leaves ends within 30 seconds.
    """
    sharded = settings | {"update.shard_weights": True}
    start = time.monotonic()
    run = train_impatiently if fault == "stop" else train
    started = processes.start(2, run, "failing", sharded, STEPS, False, 1, "pass", fault)
    found = started[0].result()
    assert time.monotonic() - start < (60 if fault == "stop" else 30)
    assert type(found) is main
    assert ("process 1 failed" in str(found)) is (fault in ERRORS)
    if fault == "stop":
        started[1].kill(signal.SIGKILL)
    ended = started[1].result()
    assert ended == other or type(ended) is other
    assert Run(Path("runs/failing")).started


@pytest.mark.slow
def test_main_process_that_is_stuck_in_a_pass_is_left(settings: dict[str, Any]) -> None:
    sharded = settings | {"update.shard_weights": True}
    main, other = processes.start(2, train_impatiently, "failing", sharded, STEPS, False, 0, "pass", "hang")
    assert isinstance(other.result(60), LostProcessError)
    main.kill(signal.SIGKILL)  # as torchrun does when the other has left


def train_with_a_flipped_bit(settings: dict[str, Any]) -> None:
    """One bit of one weight of rank 1 is another one after the second step."""
    original = Updater.apply_gradient

    def apply(self: Updater, gradient: Any, step: int) -> bool:
        updated = original(self, gradient, step)
        if os.environ["RANK"] == "1" and step == 2:
            weight = next(iter(self.params.values())).detach().view(-1)
            weight[:1].view(torch.int32).add_(1)
        return updated

    setattr(Updater, "apply_gradient", apply)  # noqa: B010 -- in a process of its own
    train("differing", settings | {"update.shard_weights": True})


def test_weights_that_differ_between_processes_end_all(settings: dict[str, Any]) -> None:
    errors = processes.run(2, train_with_a_flipped_bit, settings)
    assert [type(error) for error in errors] == [LostProcessError] * 2
    assert all("weights differ" in error.cause for error in errors)
    assert checkpoint_steps(Path("runs/differing/checkpoints")) == [1]


def train_impatiently(*args: Any) -> None:
    """Transfers inside of a pass may take seconds, not minutes."""
    distributed.CPU_PASS_TIMEOUT = timedelta(seconds=8)
    train(*args)


def test_the_number_of_processes_may_change(settings: dict[str, Any], model_folder: Path) -> None:
    train("one", settings)
    processes.run(2, train, "more", settings, 1)
    processes.run(3, train, "more", settings, 3, True)
    train("more", settings, STEPS, True)
    assert [line["step"] for line in Run(Path("runs/more")).steps] == [1, 2, 3, 4]
    rollouts = [list(Run(Path("runs") / name).read("rollouts")) for name in ("more", "one")]
    assert rollouts[0] == rollouts[1]
    assert (weights("more") - weights("one")).norm() < 1e-5 * weights("one").norm()


def test_error_of_one_process_is_raised_by_all(settings: dict[str, Any]) -> None:
    errors = processes.run(2, train, "failing", settings, STEPS, False, 1, "rollout", "error")
    assert [type(error) for error in errors] == [ReinforceLiteError] * 2
    assert {error.cause for error in errors} == {"this rank has had enough"}
    assert checkpoint_steps(Path("runs/failing/checkpoints")) == [1, 2]


def train_others(settings: dict[str, Any]) -> None:
    """Rank 1 has other problems."""
    rl.train(str(RECIPE), settings, task=Letters(int(os.environ["RANK"])), run="differing", quiet=True)


def test_processes_with_different_problems_are_refused(settings: dict[str, Any]) -> None:
    errors = processes.run(2, train_others, settings)
    assert [type(error) for error in errors] == [UsageError] * 2
    assert {error.cause for error in errors} == {"the processes do not have the same problems"}
    assert not Run(Path("runs/differing")).started


def train_without_memory_to_update(settings: dict[str, Any]) -> None:
    """Rank 1 has no memory for the second optimizer step, which is its own business."""
    original, steps = AdamW.step, 0

    def step(self: AdamW, *args: Any) -> None:
        nonlocal steps
        steps += 1
        if os.environ["RANK"] == "1" and steps == 2:
            raise torch.OutOfMemoryError("no memory for the moments")
        original(self, *args)

    setattr(AdamW, "step", step)  # noqa: B010 -- in a process of its own
    train("failing", settings)


def train_without_memory(settings: dict[str, Any]) -> None:
    """Rank 1 has no memory to score its share of the second step, where nothing can be halved."""
    original, calls = Scorer.score, 0

    def score(self: Scorer, pairs: Any) -> Any:
        nonlocal calls
        calls += 1
        if os.environ["RANK"] == "1" and calls == 4:  # after two evaluations and a step
            raise MemoryError("no memory for a reward")
        return original(self, pairs)

    Scorer.score = score  # type: ignore[method-assign]  # in a process of its own
    train("failing", settings)


def test_memory_that_runs_out_in_one_process_is_told_by_all(settings: dict[str, Any]) -> None:
    errors = processes.run(2, train_without_memory, settings)
    assert [type(error) for error in errors] == [DoesNotFitError] * 2
    assert all("no memory for a reward" in error.cause for error in errors)
    assert checkpoint_steps(Path("runs/failing/checkpoints")) == [1]


@pytest.mark.slow
def test_memory_that_runs_out_in_an_optimizer_step_ends_all(settings: dict[str, Any]) -> None:
    """The others have taken the step, which is saved nowhere."""
    errors = processes.run(2, train_without_memory_to_update, settings)
    assert [type(error) for error in errors] == [DoesNotFitError] * 2
    assert checkpoint_steps(Path("runs/failing/checkpoints")) == [1]


def test_bug_of_one_process_ends_the_others(settings: dict[str, Any]) -> None:
    main, other = processes.run(2, train, "failing", settings, STEPS, False, 1, "rollout", "bug")
    assert isinstance(other, ZeroDivisionError)
    assert isinstance(main, LostProcessError)
    assert "process 1 failed: ZeroDivisionError" in main.cause


def train_and_fail_to_save(settings: dict[str, Any]) -> float:
    """Rank 1 fails, and then rank 0, slowly, when it saves. Returns the moment at which each process ended."""

    def full(*_: Any) -> None:
        time.sleep(3)
        raise FileError("the disk is full")

    setattr(Checkpointer, "save", full)  # noqa: B010 -- in a process of its own
    expected = FileError if os.environ["RANK"] == "0" else ReinforceLiteError
    with pytest.raises(expected) as caught:
        train("failing", settings | {"train.save_every": 100}, STEPS, False, 1, "rollout", "error")
    assert type(caught.value) is expected
    return time.monotonic()


def test_other_processes_stay_until_the_main_one_has_saved(settings: dict[str, Any]) -> None:
    """torchrun ends all when the first one leaves. A second error in the main process is its own."""
    main, other = processes.run(2, train_and_fail_to_save, settings)
    assert other >= main - 0.5


def train_back(name: str, settings: dict[str, Any]) -> None:
    """With adaptive selection; the weights are not finite in the fourth step, once."""
    original, calls = Updater.weights_are_finite, 0

    def finite(self: Updater) -> bool:
        nonlocal calls
        calls += 1
        return calls != 4 and original(self)

    Updater.weights_are_finite = finite  # type: ignore[method-assign]
    try:
        train(name, settings | {"rollout.selection": "adaptive"}, 6)
    finally:
        Updater.weights_are_finite = original  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "option",
    ["", *(pytest.param(f"update.shard_{o}", marks=pytest.mark.slow) for o in ("optimizer", "weights"))],
)
def test_several_processes_go_back_and_ask_the_same_questions(option: str, settings: dict[str, Any]) -> None:
    settings = settings | ({option: True} if option else {})
    train_back("one", settings)
    assert processes.run(2, train_back, "several", settings) == [None] * 2
    asked = [
        [line["problem_id"] for line in Run(Path("runs") / r).read("rollouts")] for r in ("one", "several")
    ]
    assert len(asked[0]) == 6 * 20
    assert asked[0] == asked[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_signal_to_one_process_stops_all(rank: int, settings: dict[str, Any]) -> None:
    errors = processes.run(2, train, "failing", settings, STEPS, False, rank, "update", "term")
    assert [type(error) for error in errors] == [StoppedError] * 2
    assert {error.exit_code for error in errors} == {143}
    assert checkpoint_steps(Path("runs/failing/checkpoints")) == [1, 2]
    assert Run(Path("runs/failing")).summary["stopped"] == "signal"


@pytest.mark.parametrize(
    ("rank", "place", "fault"),
    [
        (1, "rollout", "kill"),
        (1, "update", "stop"),
        pytest.param(1, "update", "kill", marks=pytest.mark.slow),
        pytest.param(1, "rollout", "stop", marks=pytest.mark.slow),
        pytest.param(0, "rollout", "kill", marks=pytest.mark.slow),
        (0, "checkpoint", "kill"),
    ],
)
def test_run_ends_and_resumes_after_a_process_died_or_hung(
    rank: int, place: str, fault: str, settings: dict[str, Any], model_folder: Path
) -> None:
    ranks = processes.start(2, train, "failing", settings, STEPS, False, rank, place, fault)
    assert isinstance(ranks[1 - rank].result(), LostProcessError)
    if fault == "stop":
        ranks[rank].kill(signal.SIGKILL)
    assert ranks[rank].result() == -signal.SIGKILL
    assert checkpoint_steps(Path("runs/failing/checkpoints")) == [1, 2]
    train("one", settings)
    assert processes.run(2, train, "failing", settings, STEPS, True) == [None] * 2
    assert_equal_runs("failing", "one", model_folder)


@pytest.mark.parametrize(
    ("rank", "place", "fault"),
    [
        (1, "update", "hang"),
        pytest.param(1, "rollout", "spin", marks=pytest.mark.slow),
        pytest.param(0, "rollout", "hang", marks=pytest.mark.slow),
        pytest.param(0, "checkpoint", "hang", marks=pytest.mark.slow),
    ],
)
def test_run_ends_where_a_process_is_stuck(
    rank: int, place: str, fault: str, settings: dict[str, Any]
) -> None:
    """Its heartbeats continue: a thread sends them. All end on their own, without torchrun's help."""
    ranks = processes.start(2, train, "failing", settings, STEPS, False, rank, place, fault)
    other = ranks[1 - rank].result()
    assert isinstance(other, LostProcessError)
    assert f"process {rank} is stuck in" in other.cause
    assert ranks[rank].result() == 1
    assert checkpoint_steps(Path("runs/failing/checkpoints")) == [1, 2]


def train_with_slow_reward(settings: dict[str, Any]) -> None:
    """A reward of rank 1 takes longer than watched work may."""
    original, calls = Scorer.score, 0

    def score(self: Scorer, pairs: Any) -> Any:
        nonlocal calls
        calls += 1
        time.sleep(9 if calls == 4 and os.environ["RANK"] == "1" else 0)
        return original(self, pairs)

    watch.STUCK_SECONDS = 5.0
    Scorer.score = score  # type: ignore[method-assign]  # in a process of its own
    train("slow", settings)


@pytest.mark.slow
def test_slow_reward_is_not_stuck(settings: dict[str, Any]) -> None:
    assert processes.run(2, train_with_slow_reward, settings) == [None] * 2


def train_with_fast_clock(settings: dict[str, Any], rank: int) -> int:
    """After two steps the clock of a rank is a day ahead. Returns the steps that this process took."""
    original, now, steps = Updater.apply_gradient, clock.now, 0

    def apply(self: Updater, *args: Any) -> bool:
        nonlocal steps
        steps += 1
        if steps == 2 and os.environ["RANK"] == str(rank):
            clock.now = lambda: now() + 86_400  # in a process of its own
        return original(self, *args)

    setattr(Updater, "apply_gradient", apply)  # noqa: B010
    train(f"clock-{rank}", settings | {"train.hours": 10})
    return steps


@pytest.mark.parametrize(("rank", "steps"), [(0, 2), pytest.param(1, STEPS, marks=pytest.mark.slow)])
def test_the_clock_of_the_main_process_alone_decides(rank: int, steps: int, settings: dict[str, Any]) -> None:
    assert processes.run(2, train_with_fast_clock, settings, rank) == [steps] * 2
    stopped = Run(Path(f"runs/clock-{rank}")).summary["stopped"]
    assert stopped == ("hours" if rank == 0 else "steps")


def test_torchrun(settings: dict[str, Any]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
    options = ["--model.name", settings["model.name"], "--train.steps", "2", "--rollout.engine", "native"]
    command = [*torchrun, "reinforce_lite", "train", str(RECIPE), *options, "--run", "by-torchrun", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2  # printed once
    command[-1:] = []
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr.count("the run by-torchrun already exists") == 1
    command[command.index(str(RECIPE))] = "no-such-recipe"
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert wrong.stderr.count("no recipe 'no-such-recipe'") == 1


def test_process_that_prints_the_error_ends_first(in_tmp: Path) -> None:
    """torchrun ends the others with the first, which may be before the error was printed."""
    command = [sys.executable, "-m", "reinforce_lite", "train", "no-such-recipe"]
    environments = [{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"} for rank in "01"]
    first, second = (
        subprocess.Popen(command, env=os.environ | e, stderr=subprocess.PIPE, text=True) for e in environments
    )
    with first, second:
        assert "no recipe 'no-such-recipe'" in first.communicate()[1]
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(2)
        second.kill()


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_once(settings: dict[str, Any]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
    options = [
        "--model.name",
        settings["model.name"],
        "--train.steps",
        "100000",
        "--rollout.engine",
        "native",
    ]
    command = [*torchrun, "reinforce_lite", "train", str(RECIPE), *options, "--train.save-every", "100000"]
    with subprocess.Popen([*command, "--run", "stopped"], stderr=subprocess.PIPE, text=True) as started:
        run = Run(Path("runs/stopped"))
        while not (run.path / "steps.jsonl").exists() or len(run.steps) < 3:
            assert started.poll() is None
            time.sleep(0.5)
        started.send_signal(signal.SIGTERM)
        _, printed = started.communicate()
    steps = checkpoint_steps(run.path / "checkpoints")
    assert steps == [run.steps[-1]["step"]]  # once, and of the last step in the log
    assert run.summary["stopped"] == "signal"
    assert printed.count("everything is saved") == 1
