"""Code of others in a process of its own: whatever it does costs one completion its reward."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.tasks import load, load_error
from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.rollout import scoring
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.tasks import check_task, reward_worker
from reinforce_lite.tasks.python_file import FileTask
from reinforce_lite.tasks.rewards import RewardFunction, check_reward
from reinforce_lite.types import Problem, Verdict

RUNS_ITS_COMPLETION = """
import asyncio, os, signal, subprocess, sys, threading, time
from reinforce_lite import Problem, Reward, Verdict

def problems(split):
    return [Problem(f"{split}-{i}", f"{split} {i}?", str(i), info={"level": i}) for i in range(3)]

def reward(problem, completion):
    names = dict(globals(), problem=problem, result=1.0)
    exec(completion, names)
    return names["result"]
"""


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def load_file(path: str, **section: Any) -> FileTask:
    task = load(path, **section)
    assert isinstance(task, FileTask)
    return task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileTask]:
    """A task whose reward is what its completion, a Python text, does."""
    path = write(tmp_path_factory.mktemp("task"), RUNS_ITS_COMPLETION)
    task = load_file(path, reward_seconds=1, reward_memory=0.3)
    task.problems("train")
    yield task
    task.close()


def score(task: FileTask, *completions: str) -> list[tuple[float, str]]:
    """The reward and the fault of each completion."""
    problem = task.problems("train")[1]
    scored = Scorer(task).score([(problem, completion) for completion in completions])
    return [(reward.value, fault) for reward, fault in scored]


@pytest.fixture
def limits(task: FileTask, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes the task's limits for one test."""

    def change(**section: Any) -> None:
        monkeypatch.setattr(task, "config", task.config.model_copy(update=section))

    return change


PASS = "pass"


@pytest.mark.case(22)
@pytest.mark.parametrize(
    ("completion", "told"),
    [
        ("sys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("os._exit(0)", "status 0"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.killpg(0, signal.SIGTERM)", "SIGTERM"),
        ("sum(range(10**12))", "1 seconds"),
        ("9**9**9", "1 seconds"),
        ("input()", "EOFError"),
        ("os.closerange(3, 256)", "Bad file descriptor"),
        ("os.write(problem, b'')", "TypeError"),
        ("[os.write(fd, b'lies\\n') for fd in range(3, 20) if os.path.exists(f'/proc/self/fd/{fd}')]", ""),
        ("result = '1'", "not a number"),
        ("result = None", "not a number"),
        ("result = float('nan')", "nan"),
        ("result = 1e308", "1e+308"),
        ("assert 0, '\\ud800 \\x00'", "\ud800 \x00"),
    ],
)
def test_whatever_a_reward_does_costs_its_completion_alone(
    task: FileTask, completion: str, told: str
) -> None:
    before, failed, after = score(task, PASS, completion, PASS)
    assert (before, after) == ((1.0, ""), (1.0, ""))
    assert failed[0] == 0.0
    assert failed[1]
    assert told in failed[1]


@pytest.mark.case(22)
@pytest.mark.parametrize(
    "completion",
    [
        "big = bytearray(10**9); time.sleep(600)",
        "subprocess.run([sys.executable, '-c', 'x = bytearray(10**9); 9**9**9'])",
    ],
)
def test_too_much_memory_costs_its_completion_alone(
    task: FileTask, limits: Callable[..., None], completion: str
) -> None:
    limits(reward_seconds=600)
    before, failed, after = score(task, PASS, completion, PASS)
    assert (before, after) == ((1.0, ""), (1.0, ""))
    assert "reward_memory" in failed[1]


@pytest.mark.case(22)
@pytest.mark.parametrize(
    ("completion", "next_completion"),
    [
        ("os.fork()", PASS),
        ("if os.fork() == 0: sys.exit(3)", PASS),
        ("os.chdir('/')", "assert os.getcwd() != '/'"),
        ("sys.stdout.close(); sys.stderr.close()", "print('x'); print('x', file=sys.stderr)"),
        ("os.close(1); os.close(2)", "print('x'); print('x', file=sys.stderr)"),
        ("subprocess.run(['cat'])", PASS),
        ("print('x' * 10**6)", PASS),
        ("threading.Thread(target=time.sleep, args=(60,)).start()", PASS),
    ],
)
def test_what_does_no_harm_to_others_costs_nothing(
    task: FileTask, limits: Callable[..., None], completion: str, next_completion: str
) -> None:
    limits(reward_seconds=60)
    folder = Path.cwd()
    assert score(task, completion, next_completion) == [(1.0, ""), (1.0, "")]
    assert Path.cwd() == folder
    assert not sys.stdout.closed


@pytest.mark.case(22)
def test_rewards_do_not_depend_on_the_number_of_workers(task: FileTask, limits: Callable[..., None]) -> None:
    completions = [f"result = {i} / 8" for i in range(40)]
    completions[7], completions[23], completions[24] = "os._exit(1)", "time.sleep(60)", "result = None"
    one = score(task, *completions)
    limits(reward_workers=4)
    assert score(task, *completions) == one
    assert [value for value, fault in one if not fault] == [i / 8 for i in range(40) if i not in (7, 23, 24)]
    assert len(task._workers) > 1
    task.close()


def test_verdicts_and_texts_arrive_as_they_were(task: FileTask) -> None:
    problem = task.problems("train")[2]
    text = (
        "result = Reward(0.5, Verdict(True, '\\ud83d\\x00\u202e', 'why'), Verdict(False, 7, ValueError('x')))"
    )
    ((reward, fault),) = Scorer(task).score([(problem, text)])
    assert (reward.value, fault) == (0.5, "")
    assert reward.strict == Verdict(True, "\ud83d\x00\u202e", "why")
    assert reward.lenient == Verdict(False, "7", "x")
    ((reward, _),) = Scorer(task).score([(problem, "result = problem.info['level'] + float(problem.gold)")])
    assert reward.value == 4.0


def test_the_worker_is_warm_and_imports_no_torch(task: FileTask) -> None:
    assert score(task, "assert 'torch' not in sys.modules") == [(1.0, "")]
    (worker,) = task._workers
    assert score(task, "result = os.getpid()", "result = os.getpid()") == [(worker.process.pid, "")] * 2
    assert score(task, "result = os.getpgid(0)", "result = os.getppid()") == [
        (worker.process.pid, ""),
        (os.getpid(), ""),
    ]


@pytest.mark.case(22)
def test_what_a_reward_prints_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = load_file(write(tmp_path, RUNS_ITS_COMPLETION))
    assert score(task, "print('a\\x1b[2Jword')", "print('another')") == [(1.0, "")] * 2
    assert score(task, "print('a third')", "os._exit(0)")[1][0] == 0.0
    notices = [record.message for record in caplog.records if "shown this once" in record.message]
    assert [notice.count("a\\u001b[2Jword") for notice in notices] == [1]
    assert "third" not in caplog.text


def test_a_file_can_import_the_modules_beside_it(tmp_path: Path) -> None:
    """From any folder; they hide no module of the same name that is installed."""
    for name in ("neighbour", "json"):
        write(tmp_path, "SIDE = 7\n", f"{name}.py")
    text = "import json, neighbour\nassert json.dumps and neighbour.SIDE == 7\n" + RUNS_ITS_COMPLETION
    task = load_file(write(tmp_path, text))
    assert score(task, "pass") == [(1.0, "")]
    task.close()


@pytest.mark.case(22)
def test_an_idle_worker_that_ends_costs_nothing(task: FileTask) -> None:
    score(task, "threading.Timer(0.1, os._exit, [1]).start()")
    (worker,) = task._workers
    worker.process.wait(60)
    assert score(task, PASS) == [(1.0, "")]


# ── Loading ──


@pytest.mark.case(21)
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import os\nos._exit(0)\n", "status 0"),
        ("import sys\nprint('broken')\nsys.stdout.flush()\nimport os\nos.abort()\n", "broken"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
        (RUNS_ITS_COMPLETION + "def problems(split): os._exit(3)\n", "problems('train'): its process ended"),
        ("x = bytearray(10**9)\nwhile True: pass\n", "0.3 GB"),
    ],
)
def test_a_file_that_ends_its_process_is_refused(tmp_path: Path, text: str, told: str) -> None:
    error = load_error(write(tmp_path, text), reward_memory=0.3)
    assert told in error.cause
    assert "mine.py" in error.cause


@pytest.mark.case(22)
def test_a_file_that_hangs_while_it_is_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_worker, "LOAD_SECONDS", 1.0)
    assert "1 seconds" in load_error(write(tmp_path, "while True: pass\n")).cause


@pytest.mark.case(21)
@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("'1'", "str"),
        ("None", "NoneType"),
        ("float('nan')", "nan"),
        ("1 / 0", "line 14"),
        ("exit(0)", "Exit"),
    ],
)
def test_a_reward_that_is_no_number_is_a_typed_error_before_training(
    tmp_path: Path, result: str, told: str
) -> None:
    text = RUNS_ITS_COMPLETION + f"\ndef reward(problem, completion):\n    return {result}\n"
    task = load_file(write(tmp_path, text))
    with pytest.raises(UsageError, match=told):
        Scorer(task).probe(task.problems("train")[0])


@pytest.mark.case(22)
def test_workers_that_can_not_be_started_again_stop_the_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = f"if os.path.exists({str(mark)!r}): os._exit(9)\n"
    task = load_file(write(tmp_path, RUNS_ITS_COMPLETION + text))
    task.problems("train")
    mark.touch()
    with pytest.raises(ReinforceLiteError, match="status 9") as caught:
        score(task, PASS, "os._exit(1)", PASS)
    assert "--resume" in caught.value.remedy


def test_a_file_that_is_edited_during_a_run_does_not_change_its_reward(tmp_path: Path) -> None:
    task = load_file(write(tmp_path, RUNS_ITS_COMPLETION))
    task.problems("train")
    write(tmp_path, RUNS_ITS_COMPLETION.replace("result=1.0", "result=2.0"))
    assert [value for value, _ in score(task, PASS, "os._exit(1)", PASS)] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("same", "differs"),
    [
        ('{split} {i}?"', '{split} {i}? {os.getpid()}"'),
        ('{"level": i}', '{"level": i, "hidden tests": [os.getpid()]}'),
    ],
)
def test_problems_that_differ_between_processes_stop_the_run(tmp_path: Path, same: str, differs: str) -> None:
    text = RUNS_ITS_COMPLETION.replace(same, differs)
    task = load_file(write(tmp_path, text))
    check_task(task)
    with pytest.raises(ReinforceLiteError, match="same at every call"):
        score(task, PASS, "os._exit(1)", PASS)


def test_info_that_is_no_json_is_not_compared(tmp_path: Path) -> None:
    text = RUNS_ITS_COMPLETION.replace('{"level": i}', '{"level": {os.getpid()}}')
    task = load_file(write(tmp_path, text))
    assert [value for value, _ in score(task, PASS, "os._exit(1)", PASS)] == [1.0, 0.0, 1.0]


# ── Time ──


@pytest.mark.case(22)
def test_a_reward_that_always_hangs_stops_soon(task: FileTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before the fifty calls after which a rate of failures says something."""
    monkeypatch.setattr(scoring, "MAX_LOST_SECONDS", 2.2)
    scorer = Scorer(task)
    scorer.calls = 10_000  # without a fault
    with pytest.raises(ReinforceLiteError, match="of the last"):
        scorer.score([(task.problems("train")[0], "time.sleep(60)")] * 20)


@pytest.mark.case(22)
def test_a_few_that_hang_do_not_stop_a_run(task: FileTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MAX_LOST_SECONDS", 0.5)
    completions = [PASS] * 20
    completions[9] = "time.sleep(60)"
    assert sum(bool(fault) for _, fault in score(task, *completions)) == 1


# ── Rewards of several completions ──

BATCHED = (
    RUNS_ITS_COMPLETION.partition("def reward")[0]
    + """
calls = []

def reward(completions, prompts, gold, level, **others):
    calls.append(len(completions))
    assert others["answer"] == gold and others["questions"] == prompts
    rewards = []
    for completion, prompt, right, number in zip(completions, prompts, gold, level, strict=True):
        names = dict(globals(), result=float(right in completion) + number / 10)
        exec(completion, names)
        rewards.append(names["result"])
    return rewards[:-1] if "# lost" in completions[0] else rewards
"""
)


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileTask]:
    path = write(tmp_path_factory.mktemp("batched"), BATCHED)
    task = load_file(path, reward_seconds=0.5)
    task.problems("train")
    yield task
    task.close()


def test_a_reward_with_completions_gets_lists(batched: FileTask) -> None:
    pairs = [(p, str(text)) for p in batched.problems("train") for text in (1, 2)]
    values = [reward.value for reward, _ in Scorer(batched).score(pairs)]
    assert values == [0.0, 0.0, 1.1, 0.1, 0.2, 1.2]
    assert score(batched, "result = calls[-2]", "result = calls[-1]")[0] == (6.0, "")


@pytest.mark.case(22)
@pytest.mark.parametrize("bad", ["time.sleep(60)", "os._exit(0)", "1 / 0", "result = 'x'", "sys.exit()"])
def test_in_a_batch_one_bad_completion_costs_one_reward(batched: FileTask, bad: str) -> None:
    scored = score(batched, *["result = 2"] * 2, bad, *["result = 3"] * 2)
    assert [value for value, _ in scored] == [2.0, 2.0, 0.0, 3.0, 3.0]
    assert [bool(fault) for _, fault in scored] == [False, False, True, False, False]


@pytest.mark.case(21)
def test_a_wrong_count_is_a_fault(batched: FileTask) -> None:
    assert "0 rewards for 1" in score(batched, "1 # lost")[0][1]


@pytest.mark.parametrize("signature", ["problem, completion", "completions, **columns"])
def test_a_reward_may_be_async(tmp_path: Path, signature: str) -> None:
    result = "0.5" if "problem" in signature else "[0.5] * len(completions)"
    text = RUNS_ITS_COMPLETION.partition("def reward")[0]
    text += f"async def reward({signature}):\n    await asyncio.sleep(0)\n    return {result}\n"
    assert score(load_file(write(tmp_path, text)), "", "") == [(0.5, ""), (0.5, "")]


@pytest.mark.parametrize("batched", [False, True])
def test_an_async_reward_of_an_object_works_where_a_loop_runs_already(batched: bool) -> None:
    """As in a notebook. Both calls have one loop, to which what the reward keeps belongs."""
    loops = []

    async def single(problem: Problem, completion: str) -> float:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return 0.5

    async def several(completions: list[str]) -> list[float]:
        return [await single(Problem("1", "?", "1"), text) for text in completions]

    reward = RewardFunction(several if batched else single)

    async def notebook() -> list[Any]:
        return [reward([Problem("1", "?", "1")], ["a"]), reward([Problem("1", "?", "1")], ["b"])]

    outcomes = asyncio.run(notebook())
    assert [outcome.reward.value for [outcome] in outcomes] == [0.5, 0.5]
    assert len(loops) == 2
    assert loops[0] is loops[1]


@pytest.mark.parametrize("value", [Fraction(1, 4), Decimal("0.25")])
def test_a_reward_may_be_a_fraction_or_a_decimal(value: object) -> None:
    reward = check_reward(value)
    assert (type(reward.value), reward.value) == (float, 0.25)
    for bad in (Decimal("NaN"), Fraction(10**31)):
        with pytest.raises(ValueError, match="not within"):
            check_reward(bad)


# ── The end ──


def test_closed_workers_leave_nothing_behind(task: FileTask) -> None:
    score(
        task,
        "subprocess.Popen(['sleep', '600'], start_new_session=True)",
        "if os.fork() == 0: time.sleep(600)",
    )
    processes = [p for w in task._workers for p in w._family()]
    assert len(processes) >= 4  # the worker, its shell, and these two
    task.close()
    psutil.wait_procs(processes, timeout=30)
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


ORPHANS = """
import os, signal, sys, threading
from reinforce_lite.config import TaskConfig
from reinforce_lite.tasks import load_task
task = load_task(TaskConfig(name=sys.argv[1], reward_seconds=600))
problem = task.problems("train")[0]
print(task._workers[0].process.pid, flush=True)
threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGKILL]).start()
task.reward(problem, "subprocess.Popen(['sleep', '600']); 9**9**9")
"""


@pytest.mark.case(22)
def test_no_orphan_survives_a_trainer_that_is_killed(tmp_path: Path) -> None:
    """Although a big power holds the interpreter of the worker."""
    command = [sys.executable, "-c", ORPHANS, write(tmp_path, RUNS_ITS_COMPLETION)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        group = int(trainer.stdout.readline())
        assert trainer.wait(60) == -signal.SIGKILL
    end = time.monotonic() + 60
    while alive := _members(group):
        assert time.monotonic() < end, alive
        time.sleep(0.05)


def _members(group: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                members.append(process)
        except ProcessLookupError:
            pass
    return members


def test_an_exception_of_a_signal_passes_through(task: FileTask) -> None:
    """As Interrupted does, while the reward hangs; the next call has a new worker."""

    class Stop(BaseException):
        pass

    def handle(signum: int, frame: object) -> None:
        raise Stop

    previous = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Stop):
            score(task, "9**9**9")
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert not task._workers
    assert score(task, PASS) == [(1.0, "")]


def test_a_problem_of_no_split_is_an_error(task: FileTask) -> None:
    with pytest.raises(KeyError):
        task.reward(Problem("other", "?", "1"), PASS)
