"""The commands as a user types them: exit status, one line of cause, plain lines, JSON."""

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reinforce_lite as rl
from helpers import run_files as runs
from helpers.faults import Refuses, Write, watching
from helpers.tiny import make_model
from reinforce_lite.cli.app import main
from reinforce_lite.errors import UsageError
from reinforce_lite.runlog.runs import find_run

FAST = ["--model.dtype", "float32", "--train.steps", "2", "--rollout.prompts-per-step", "2"]
FAST += [
    "--rollout.max-new-tokens",
    "6",
    "--eval.n",
    "4",
    "--eval.validation-n",
    "3",
    "--train.save-every",
    "1",
]

TASK = """
from reinforce_lite import Problem

def problems(split):
    return [Problem(f"{split}-{n}", f"In {split}: how long is {'x' * n}?", str(n)) for n in range(2, 8)]

def reward(problem, completion):
    return float(sum(map(ord, completion)) % 3 == 0)
"""


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(args)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def train_args(model_folder: Path, in_tmp: Path) -> list[str]:
    (in_tmp / "my_task.py").write_text(TASK)
    return ["train", "--model.name", str(model_folder), "--task.name", "./my_task.py", *FAST]


def test_eval_compares_with_the_untrained_model_on_the_same_problems_only(
    train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run([*train_args, "--run", "mine"], capsys)
    Path("my_task.py").write_text(TASK.replace("how long", "how tall"))
    status, out, _ = run(["eval", "mine"], capsys)
    assert status == 0
    assert "on the same problems" not in out
    assert "the untrained model: " in out  # the command that measures it on these


def test_train_eval_and_ask(train_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run([*train_args, "--run", "mine"], capsys)
    assert status == 0
    assert "step 2/2" in out
    assert "accuracy on 4 test problems" in out
    assert "runs/mine/model" in out
    assert "\x1b" not in out  # plain lines where there is no terminal

    status, out, _ = run(["eval", "mine", "--json"], capsys)
    assert status == 0
    assert json.loads(out)["n"] == 4
    status, out, _ = run(["eval", "mine"], capsys)
    before = find_run("mine").before
    assert before
    assert f"untrained model on the same problems: strict {100 * before['strict']:.1f}%" in out
    assert "runs/mine/model on 4 test problems, trained for 2 steps" in out
    status, out, _ = run(["eval", "mine", "--eval.n", "99"], capsys)
    assert "on 6 test problems (there are no more)" in out
    status, out, _ = run(["eval", "mine", "--eval.n", "2"], capsys)
    assert "n = 2" in out
    (options,) = re.findall(r"reinforce.lite eval mine (.+)", out)
    status, out, _ = run(["eval", "mine", *options.split()], capsys)
    assert status == 0
    assert f"measured: {find_run('mine').config.model.name} on 2 test problems" in out
    examples = json.dumps([{"question": "What is it?", "answer": "It's 1"}])
    status, out, _ = run(["eval", "mine", "--eval.n", "2", "--prompt.examples", examples], capsys)
    (command,) = re.findall(r"reinforce.lite (eval mine .+)", out)
    assert shlex.split(command)[shlex.split(command).index("--prompt.examples") + 1] == examples
    assert "why completions fail" in out
    status, out, _ = run(["eval", "mine", "--samples", "4", "--json"], capsys)
    found = json.loads(out)
    assert (found["n"], found["samples"], found["pass@1"]) == (4, 4, pytest.approx(found["strict"]))
    assert found["pass@1"] <= found["pass@2"] <= found["pass@4"]
    assert "reflection/list_a" in found
    assert sum(f["count"] for f in found["failures"]) == round(16 * (1 - found["strict"]))
    assert set(found["failures"][0]) == {"reason", "count", "share", "question", "gold", "completion"}
    status, out, _ = run(["eval", "mine", "--samples", "4"], capsys)
    assert "strict pass@k from 4 sampled completions per problem" in out

    status, out, _ = run(["ask", "mine", "how long is xx?", "--json"], capsys)
    assert [a["model"] for a in json.loads(out)] == ["untrained", "trained"]
    status, out, _ = run(["ask", "mine", "how long is xx?"], capsys)
    assert status == 0
    assert "untrained" in out

    status, _, err = run([*train_args, "--run", "mine"], capsys)
    assert status == 2
    assert "already exists" in err
    status, out, err = run(["train", "--run", "mine", "--resume"], capsys)
    assert status == 0
    assert "is finished" in err


def test_export(train_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that was killed: only its checkpoints are left, and not the file of its task."""
    assert run([*train_args, "--run", "mine"], capsys)[0] == 0
    path = find_run("mine").path
    for name in ("model", "best"):
        shutil.rmtree(path / name, ignore_errors=True)
    Path("my_task.py").rename("moved.py")
    status, _, err = run(["ask", "mine", "2+2?"], capsys)
    assert status == 2
    (command,) = re.findall(r"reinforce.lite (export mine)", err)
    status, out, err = run([*command.split(), "--dtype", "bfloat16", "--to", "half"], capsys)
    assert (status, err) == (0, "")
    assert f"the model of step 2 of 2: {Path('half').absolute()}" in out
    status, _, err = run([*command.split(), "--to", "half"], capsys)
    assert (status, "is not empty" in err) == (2, True)
    status, _, err = run([*command.split(), "--step", "7"], capsys)
    assert (status, "these steps have one: 1, 2" in err) == (2, True)
    assert run(["export", "nothere"], capsys)[0] == 2
    assert run(command.split(), capsys)[0] == 0
    assert run(["ask", "mine", "2+2?"], capsys)[0] == 0


def test_json_alone_is_on_standard_output(train_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run([*train_args, "--run", "mine", "--json"], capsys)
    assert status == 0
    assert json.loads(out)["steps"] == 2
    assert "step 2/2" in err
    status, out, _ = run(["ask", "mine", "how long is \u202e\u00e9?", "--json"], capsys)
    assert status == 0
    assert out.isascii()


def test_resume_brings_its_own_config(train_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*train_args, "--run", "mine"], capsys)[0] == 0
    status, out, _ = run(["train", "--run", "mine", "--resume", "--train.steps", "3"], capsys)
    assert status == 0
    assert "step 3/3" in out
    status, _, err = run(["train", "--run", "mine", "--resume", "--train.seed", "5"], capsys)
    assert status == 2
    assert "train.seed: 0 -> 5" in err


def test_resume_without_a_checkpoint_starts_at_the_beginning(
    train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run([*train_args, "--run", "new", "--resume"], capsys)
    assert status == 0
    assert "step 1/2" in out


@pytest.mark.case(25)
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "nothere"], "there is no recipe 'nothere'"),
        (["train", "nothere.toml"], "can't read the recipe nothere.toml"),
        (["train", "--resume"], "--run NAME"),
        (["train", "--run", "../../x"], "can't be the name of a run"),
        (["train", "--run", "/tmp/x"], "can't be the name of a run"),
        (["train", "--run", "a/b"], "can't be the name of a run"),
        (["train", "--run", "x" * 300], "can't be the name of a run"),
        (["train", "--run", ".hidden"], "can't be the name of a run"),
        (["train", "--run", "x" * 300, "--resume"], "can't be the name of a run"),
        (["train", "--rollout.group-size", "2"], "needs at least 3 completions"),
        (["train", "--task.name", "./none.py"], "none.py"),
        (["eval", "no/such/model"], "can't load the model 'no/such/model'"),
        (["train", "--eval.samples", "8"], "--eval.samples has become the option --samples"),
        (["train", "--rollout.samples-per-prompt=8"], "has become --rollout.group-size"),
        (["train", "--model.trust-remote-code"], "--trust-remote-code and --allow-pickles"),
        (["eval", "--model.trust_remote_code=True"], "--trust-remote-code and --allow-pickles"),
        (["plan", "--update.state", "8-bit"], "--update.state has become --update.optimizer-state"),
        (["train", "--task.name", "jsonl", "--task.path", "x" * 300], "File name too long"),
        (["train", "--task.name", "jsonl", "--task.path", "nul\0"], "can't read nul"),
        (["train", "--task.name", "gsm8k", "--task.path", "x" * 300], "File name too long"),
        (["train", "--task.name", f"./{'x' * 300}.py"], "there is no file"),
        (["plan", "--model.name", f"./{'x' * 300}"], "no such file or folder"),
        (["plan", f"{'x' * 300}.toml"], "File name too long"),
        (["ask", f"./{'x' * 300}", "hi"], "no such file or folder"),
        (["eval", f"./{'x' * 300}"], "no such file or folder"),
        (["report", "a", "--out", ""], "--out is a folder: ."),
        (["report", "a", "--out", ".."], "--out is a folder: .."),
        (["doctor", ""], "there is no run ''"),
        (["eval", ""], "'' is no model or run"),
        (["ask", " ", "hi"], "' ' is no model or run"),
        (["audit", "--minutes", "nan"], "an audit can't take nan minutes"),
        (["audit", "--minutes", "inf"], "an audit can't take inf minutes"),
        (["audit", "--minutes", "-1"], "an audit can't take -1 minutes"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    args: list[str], said: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(args, capsys)
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert err.startswith("reinforce-lite: ")
    assert not list(in_tmp.glob("runs/*/*.jsonl"))


@pytest.mark.case(25)
@pytest.mark.parametrize("kind", ["pipe", "link", "config", "notes"])
def test_a_report_replaces_nothing_but_a_report(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs.write(tmp_path / "a", [runs.step(1)], [runs.completion(1, "p")]).path
    out = path / "config.toml" if kind == "config" else tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "link":
        out.symlink_to("elsewhere")
    elif kind == "notes":
        out.write_text("mine")
    before = (out.lstat().st_ino, out.lstat().st_mode)
    status, _, err = run(["report", str(path), "--out", str(out)], capsys)
    assert (status, (out.lstat().st_ino, out.lstat().st_mode)) == (2, before)
    assert str(out) in err


def test_a_report_replaces_a_former_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs.write(tmp_path / "a", [runs.step(1)], [runs.completion(1, "p")]).path
    for _ in range(2):
        assert run(["report", str(path), "--out", str(tmp_path / "b.html")], capsys)[0] == 0


@pytest.mark.parametrize(
    ("command", "size", "said"),
    [("plan", "abc", "WORLD_SIZE"), ("train", "abc", "WORLD_SIZE"), ("train", "2", "RANK")],
)
def test_an_environment_that_is_not_torchruns_is_told(
    command: str, size: str, said: str, in_tmp: Path
) -> None:
    environment = {**os.environ, "WORLD_SIZE": size}
    arguments = [sys.executable, "-m", "reinforce_lite", command, "--model.device", "cpu"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert f"the environment variable {said} is" in done.stderr
    assert "torchrun" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_current_folder_that_was_deleted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    for command in ("train", "plan"):
        status, _, err = run([command], capsys)
        assert status == 2
        assert "the current folder was deleted" in err


@pytest.mark.parametrize("option", [["--train.stepz", "3"], ["--train.steps", "x"], ["--train.steps", "0"]])
def test_bad_options_exit_with_status_2(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", *option])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert option[0] in said or "steps" in said.split("Error parsing train")[1]


def test_a_missing_task_file_is_told_before_the_model_is_loaded(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["train"], ["eval", "smollm2-135m"]):
        status, out, _ = run([*command, "--task.name", "./none.py"], capsys)
        assert status == 2
        assert "smollm2" not in out


@pytest.mark.case(20)
@pytest.mark.case(17)
def test_no_problem_that_fits(model_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(["eval", str(model_folder), "--prompt.max-tokens", "9"], capsys)
    assert status == 2
    assert "no test problem has a prompt of at most 9 tokens" in err


@pytest.mark.case(3)
def test_a_folder_that_can_not_be_written(train_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").write_text("a file, where the folder should be")
    status, _, err = run([*train_args, "--run", "mine"], capsys)
    assert status == 1
    assert "can't write" in err


@pytest.mark.case(2)
def test_a_full_disk_is_one_line_and_the_run_resumes(
    train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def full(write: Write) -> None:
        if write.path.name == "steps.jsonl" and write.kind == "open":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with watching(Path("runs/mine"), full):
        status, _, err = run([*train_args, "--run", "mine"], capsys)
    cause, remedy = err.splitlines()[-2:]
    assert status == 1
    assert "runs/mine/steps.jsonl: No space left on device" in cause
    assert "train --run mine --resume" in remedy
    assert "Traceback" not in err
    assert run(["train", "--run", "mine", "--resume"], capsys)[0] == 0
    assert len(find_run("mine").steps) == 2


@pytest.mark.case(3)
@pytest.mark.parametrize("finished", [True, False])
def test_a_resume_in_a_read_only_folder_is_one_line(
    finished: bool, train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*train_args, "--run", "mine"], capsys)[0] == 0
    resume = ["train", "--run", "mine", "--resume", *([] if finished else ["--train.steps", "3"])]
    with watching(Path("runs/mine"), Refuses(errno.EROFS, 1)):
        status, _, err = run(resume, capsys)
    cause, remedy = err.splitlines()[-2:]
    assert status == 1
    assert "runs/mine" in cause
    assert "Read-only file system" in cause
    assert "writable" in remedy
    assert "Traceback" not in err


def test_help_needs_no_heavy_import() -> None:
    code = "import sys; from reinforce_lite.cli import main; main(['--help']); print([m for m in ('torch', 'transformers', 'pydantic', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train  [RECIPE" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", ["train", "eval", "ask", "plan", "report"])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: reinforce-lite {command}" in capsys.readouterr().out


def test_light_rooms_import_without_torch() -> None:
    """As the house says: their tests need no weights."""
    rooms = "errors types config tasks tasks.grading rollout.scoring evaluation.reflection runlog.run utils.seeding evaluation.evaluate report.refresher runlog.health evaluation.failures"
    code = "import sys; " + "; ".join(f"import reinforce_lite.{room}" for room in rooms.split())
    done = subprocess.run(
        [sys.executable, "-c", code + "; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.toml", "not = = toml", "runs/a/config.toml is damaged: "),
        ("config.toml", "caf\udce9", "runs/a/config.toml is damaged: "),
        ("config.toml", "[rollout]\ngroup_size = 1e308", "runs/a/config.toml is damaged: [rollout]"),
        ("config.toml", "train = 7", "runs/a/config.toml is damaged: [train]"),
        ("summary.json", '{"steps": ', "runs/a/summary.json is damaged: "),
        ("summary.json", '{"stopped": "steps"}', "runs/a/summary.json is damaged: 'steps'"),
    ],
)
def test_a_report_of_damaged_files_names_them(
    file: str, text: str, said: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = runs.write(Path("runs/a"), [runs.step(1)], stopped="steps")
    (made.path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    status, _, err = run(["report", "a"], capsys)
    assert status == 2
    assert f"reinforce-lite: {said}" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("file", ["steps.jsonl", "rollouts.jsonl", "summary.json"])
def test_a_report_of_what_can_not_be_read_names_it(
    file: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = runs.write(Path("runs/a"), [runs.step(1)], stopped="steps")
    (made.path / file).unlink()
    (made.path / file).mkdir()
    status, _, err = run(["report", "a"], capsys)
    assert status == 1
    assert f"can't read runs/a/{file}: Is a directory" in err
    assert "Traceback" not in err


def test_a_runs_name_can_not_act_on_the_terminal(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.write(Path("b\x1b[2Jad"), [runs.step(1)], stopped="steps")
    status, out, _ = run(["report", "b\x1b[2Jad", "--out", "x.html"], capsys)
    assert status == 0
    assert "\x1b" not in out
    assert "b\\u001b[2Jad: " in out


@pytest.mark.case(30)
def test_permissions_are_options_and_never_stored(
    train_args: list[str], model_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model with pickled weights needs the option at every command, also when its run is resumed."""
    pickled = in_tmp / "pickled"
    shutil.copytree(model_folder, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(make_model().state_dict(), pickled / "pytorch_model.bin")
    args = [*train_args, "--model.name", str(pickled), "--run", "mine"]
    status, _, err = run(args, capsys)
    assert status == 2
    assert "--allow-pickles" in err
    assert run([*args, "--allow-pickles"], capsys)[0] == 0
    assert "pickles" not in Path("runs/mine/config.toml").read_text()
    resume = ["train", "--run", "mine", "--resume", "--train.steps", "3"]
    status, _, err = run(resume, capsys)
    assert status == 2
    assert "--allow-pickles" in err
    assert run([*resume, "--allow-pickles"], capsys)[0] == 0
    for command in (
        ["ask", "mine", "2+2?"],
        ["eval", str(pickled), "--task.name", "./my_task.py", "--eval.n", "2"],
    ):
        status, _, err = run(command, capsys)
        assert status == 2
        assert "--allow-pickles" in err
        assert run([*command, "--allow-pickles"], capsys)[0] == 0
    settings = {"task.name": "./my_task.py", "eval.n": 2}
    with pytest.raises(UsageError, match="pickled"):
        rl.evaluate(str(pickled), settings, quiet=True)
    assert rl.evaluate(str(pickled), settings, quiet=True, allow_pickles=True).n == 2
    with pytest.raises(UsageError, match="pickled"):
        rl.train("quickstart", settings | {"model.name": str(pickled)}, run="other", quiet=True)
    config = Path("runs/mine/config.toml")
    config.write_text(config.read_text().replace("[model]", "[model]\ntrust_remote_code = true"))
    for command in (resume, ["eval", "mine"], ["ask", "mine", "2+2?"]):
        status, _, err = run(command, capsys)
        assert status == 2
        assert "--trust-remote-code" in err


@pytest.mark.case(29)
def test_the_path_of_a_task_file_is_shown_before_it_runs(
    train_args: list[str], model_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file says on standard error when it runs."""
    file = in_tmp / "my_task.py"
    file.write_text(f"import sys\nprint('I RUN', file=sys.stderr)\n{TASK}")
    measure = ["eval", str(model_folder), "--task.name", "./my_task.py", "--eval.n", "2"]
    for command in (train_args, [*train_args, "--json"], measure, [*measure, "--json"]):
        status, _, err = run(command, capsys)
        assert status == 0
        assert -1 < err.find(str(file.resolve())) < err.find("I RUN")


@pytest.mark.case(29)
def test_nothing_of_a_task_file_runs_for_a_plan_or_a_report(
    train_args: list[str], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*train_args, "--run", "mine"], capsys)[0] == 0
    (in_tmp / "my_task.py").write_text("open('ran', 'w').close()")
    (in_tmp / "theirs.toml").write_text('[task]\nname = "./my_task.py"')
    assert run(["plan", "theirs.toml", "--vram", "80"], capsys)[0] == 0
    assert run(["report", "mine"], capsys)[0] == 0
    assert not Path("ran").exists()
    assert run(["train", "theirs.toml"], capsys)[0] == 2
    assert Path("ran").exists()


@pytest.mark.case(28)
@pytest.mark.case(31)
def test_a_secret_is_nowhere_and_half_a_character_stops_nothing(
    train_args: list[str], in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In questions, golds, ids, verdicts and exceptions; training is the same bit for bit."""
    secret = "hf_abcdefgh12345678"
    (in_tmp / "my_task.py").write_text(TASK_WITH_A_SECRET)
    monkeypatch.setenv("SOME_URL", secret)
    assert run([*train_args, "--run", "open"], capsys)[0] == 0
    assert secret in Path("runs/open/rollouts.jsonl").read_text()  # that name says nothing of a secret
    monkeypatch.delenv("SOME_URL")
    monkeypatch.setenv("SOME_TOKEN", secret)
    shown = []
    for command in (
        [*train_args, "--run", "mine"],
        ["train", "--run", "mine", "--resume", "--train.steps", "3"],
        ["eval", "mine"],
        ["eval", "mine", "--json"],
        ["ask", "mine", f"{secret} \ud83d?"],
        ["ask", "mine", secret, "--json"],
        ["report", "open", "mine", "--out", "both.html"],
    ):
        status, out, err = run(command, capsys)
        assert status == 0
        shown += [out, err]
    files = [file for file in Path("runs/mine").rglob("*") if file.is_file()] + [Path("both.html")]
    assert len(files) > 15
    assert [file for file in files if secret.encode() in file.read_bytes()] == []
    assert secret not in "".join(shown)
    mine, plain = find_run("mine"), find_run("open")
    assert [s["loss"] for s in mine.steps[:2]] == [s["loss"] for s in plain.steps]
    assert [s["grad_norm"] for s in mine.steps[:2]] == [s["grad_norm"] for s in plain.steps]
    lines = list(mine.read("rollouts"))
    assert all("\ud83d" in line["question"] and "[SOME_TOKEN]" in line["question"] for line in lines)
    faults = {line["fault"] for line in lines if line["fault"]}
    assert {fault.partition(" (line")[0] for fault in faults} == {"ValueError: [SOME_TOKEN] \ud83d"}
    assert {line["reason"] for line in lines} >= {"\ud83d [SOME_TOKEN]"}


TASK_WITH_A_SECRET = """
import os
from reinforce_lite import Problem, Reward, Verdict

SECRET = os.environ.get("SOME_TOKEN") or os.environ["SOME_URL"]

def problems(split):
    return [Problem(f"{split}-{n}-{SECRET}", f"{SECRET} \\ud83d {split} {'x' * n}?", SECRET) for n in range(2, 8)]

def reward(problem, completion):
    if sum(map(ord, completion)) % 11 == 3:
        raise ValueError(f"{SECRET} \\ud83d")
    right = sum(map(ord, completion)) % 3 == 0
    return Reward(float(right), Verdict(right, SECRET, f"\\ud83d {SECRET}"))
"""


@pytest.mark.case(31)
def test_the_traceback_of_a_bug_shows_no_secret(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError("hf_abcdefgh \ud83d \x1b[2J")

    monkeypatch.setenv("SOME_TOKEN", "hf_abcdefgh")
    monkeypatch.setattr("reinforce_lite.cli.args.parse_train", bug)
    status, _, err = run(["train"], capsys)
    assert status == 1
    assert "in bug" in err
    assert err.splitlines()[-1] == "RuntimeError: [SOME_TOKEN] \\ud83d \\u001b[2J"


@pytest.mark.case(28)
def test_notices_and_errors_show_no_secret(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hf_abcdefgh")
    (in_tmp / "my_task.py").write_text(
        "import logging\nlogging.getLogger('reinforce_lite.x').warning('hf_abcdefgh')\nraise ValueError('hf_abcdefgh')"
    )
    status, out, err = run(["train", "--task.name", "./my_task.py"], capsys)
    assert status == 2
    assert err.count("[SOME_TOKEN]") == 2
    assert "hf_abcdefgh" not in out + err


@pytest.mark.case(8)
def test_ctrl_c_from_outside(train_args: list[str]) -> None:
    """The real program, a real signal, and the words that say how to go on."""
    command = [
        sys.executable,
        "-m",
        "reinforce_lite",
        *train_args,
        "--run",
        "mine",
        "--train.steps",
        "100000",
    ]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 3/"):
                process.send_signal(2)
                break
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "train --run mine --resume" in err
    assert err.index("Ctrl-C again") < err.index("stopped by SIGINT")
    assert "Traceback" not in err
    summary = json.loads(Path("runs/mine/summary.json").read_text())
    assert summary["stopped"] == "signal"
    assert summary["steps"] >= 3


def test_doctor_reads_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs.write(tmp_path / "a", [runs.step(1, reward=0.75)], [runs.completion(1, "p")]).path
    status, out, _ = run(["doctor", str(path)], capsys)
    assert status == 0
    assert "0.75" in out
    status, out, _ = run(["doctor", str(path), "--json"], capsys)
    assert status == 0
    assert set(json.loads(out)) == {"figures", "problems", "next"}
    status, _, err = run(["doctor", str(tmp_path / "none")], capsys)
    assert status == 2
    assert "none" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_an_output_that_can_not_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        status = main(["--version"])
        assert sys.stdout.write("dropped") == 7
        full.flush()
    assert status == 1
    assert capsys.readouterr().err == "reinforce-lite: can't write the output: No space left on device\n"


def test_training_outlives_its_reader(train_args: list[str]) -> None:
    """As `train ... | head -1`; the notes on standard error go on."""
    command = [sys.executable, "-m", "reinforce_lite", *train_args, "--run", "piped"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "loading libraries ...\n"
        process.stdout.close()
        notes = process.stderr.read()
    assert process.returncode == 0, notes
    assert notes.count("output is lost (BrokenPipeError") == 1
    run = find_run("piped")
    assert run.summary["stopped"] == "steps"
    assert (run.path / "model").is_dir()


def test_an_encoding_that_lacks_a_character_ends_nothing(tmp_path: Path) -> None:
    """An interval has a dash."""
    lines = [runs.step(n) for n in (1, 2)]
    evaluations = [runs.eval_completions(0, runs.ONE_RIGHT), runs.eval_completions(2, runs.SEVEN_RIGHT)]
    runs.write(tmp_path / "a", lines, [runs.completion(n, "p") for n in (1, 2)], evaluations, "steps")
    command = [sys.executable, "-m", "reinforce_lite", "doctor", str(tmp_path / "a")]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode("latin-1").count("Traceback")) == (0, 0)
    assert b"?" in done.stdout


def test_a_folder_with_a_runs_files_but_no_config_is_refused(
    train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*train_args, "--run", "mine"], capsys)[0] == 0
    Path("runs/mine/config.toml").unlink()
    for resume in ([], ["--resume"]):
        status, _, err = run([*train_args, "--run", "mine", *resume], capsys)
        assert status == 2
        assert "runs/mine has the steps.jsonl of a run, but no config.toml" in err
