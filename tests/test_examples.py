"""Every example runs with the tiny model, and does what it says."""

import importlib.util
import json
import re
import runpy
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import reinforce_lite as rl
from helpers.paths import RECIPE, ROOT
from helpers.plain import COMPLETIONS, PROMPT, sequence_logprobs
from helpers.tiny import ToyTask
from reinforce_lite.cli.app import main
from reinforce_lite.config import TaskConfig, load_config
from reinforce_lite.learner.objective import compute_advantages
from reinforce_lite.learner.presets import PRESETS
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.tasks import check_task, load_task, stop_strings
from reinforce_lite.tasks.base import Task

EXAMPLES = ROOT / "examples"
MINIMAL_LOOP_LINES = 150
STEPS = 4
SMALL_STEP = {"rollout.prompts_per_step": 5, "rollout.group_size": 4, "rollout.max_new_tokens": 6}
PROMPT_TOKENS = {"prompt.max_tokens": 1900}
"""The toy tokenizer has a token for each byte, so that the quickstart's worked examples are long."""


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example at the size of the tiny model, on a task in which that model earns something."""
    module = load_example("minimal_loop")
    monkeypatch.setattr(module, "load_task", lambda config: ToyTask())
    for key, value in SMALL_STEP.items():
        monkeypatch.setattr(module, key.split(".")[1].upper(), value)
    return module


def test_minimal_loop_fits_in_its_line_limit() -> None:
    lines = (EXAMPLES / "minimal_loop.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MINIMAL_LOOP_LINES


def test_minimal_loop_constants_are_the_quickstart_recipe() -> None:
    module, config = load_example("minimal_loop"), load_config("quickstart")
    rollout = ["prompts_per_step", "group_size", "max_new_tokens", "temperature", "top_p"]
    update = ["learning_rate", "warmup_steps", "max_grad_norm"]
    for section, keys in ((config.rollout, rollout), (config.update, update)):
        for key in keys:
            assert getattr(module, key.upper()) == getattr(section, key), key
    assert PRESETS[config.objective.preset].advantage_clip == module.ADVANTAGE_CLIP
    assert stop_strings(config) == module.STOP


def test_minimal_loop_command_prints_a_line_per_step(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On word problems the tiny model earns nothing, so this is also the way of steps without signal."""
    options = ["--model", settings["model.name"], "--steps", "2", "--seed", "5"]
    monkeypatch.setattr("sys.argv", ["minimal_loop.py", *options])
    runpy.run_path(str(EXAMPLES / "minimal_loop.py"), run_name="__main__")
    line = r"step +(\d+)  reward 0\.000  accuracy 0\.000  tokens \d+  seconds \d+\.\d"
    matches = [re.fullmatch(line, text) for text in capsys.readouterr().out.splitlines()[1:]]
    assert [match and match[1] for match in matches] == ["1", "2"]


def test_minimal_loop_advantages_equal_the_learner(loop: ModuleType) -> None:
    torch.manual_seed(0)
    graded = torch.rand(20, 5, dtype=torch.float64)
    rewards = torch.cat([graded, (graded > 0.7).double(), torch.full((1, 5), 0.7, dtype=torch.float64)])
    expected = compute_advantages(rewards.tolist(), PRESETS["reinforce-lite"])
    found = loop.leave_one_out_advantages(rewards)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (found.abs() == loop.ADVANTAGE_CLIP).any()
    assert (found[-1] == 0).all()


@pytest.mark.parametrize("completions", [COMPLETIONS, [(60,), (61,)]])
def test_minimal_loop_logprobs_equal_those_without_cache_or_padding(
    loop: ModuleType, policy: Policy, completions: list[tuple[int, ...]]
) -> None:
    weights = torch.arange(1.0, len(completions) + 1)
    found = loop.completion_logprobs(policy.model, PROMPT, completions)
    (found * weights).sum().backward()
    gradients = [p.grad.clone() for p in policy.model.parameters()]
    policy.model.zero_grad()
    sums = [sequence_logprobs(policy.model, PROMPT, c, loop.TEMPERATURE).sum() for c in completions]
    expected = torch.stack(sums).float()
    torch.autograd.backward((expected * weights).sum())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for gradient, parameter in zip(gradients, policy.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-4)


def test_minimal_loop_takes_the_steps_of_the_trainer(
    loop: ModuleType, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    name, seed = settings["model.name"], 3
    policy = loop.train(name, STEPS, seed)
    lines = capsys.readouterr().out.splitlines()[1:]
    rewards = [float(re.search(r"reward (\S+)", line)[1]) for line in lines]  # type: ignore[index]

    evaluation = {"eval.n": 1, "eval.validation_n": 1}
    options = {"train.steps": STEPS, "train.seed": seed, "model.dtype": "float32"}
    run = rl.train(
        "quickstart",
        {**settings, **SMALL_STEP, **PROMPT_TOKENS, **evaluation, **options},
        task=ToyTask(),
        quiet=True,
    )
    assert rewards == [pytest.approx(line["reward"], abs=1e-3) for line in run.steps]
    assert any(line["updated"] for line in run.steps)

    untrained = load_policy(name, dtype="float32").model.state_dict()
    trained = load_policy(str(run.path / "model"), dtype="float32").model.state_dict()
    moved = torch.cat([(policy.model.state_dict()[k] - w).flatten() for k, w in untrained.items()])
    expected = torch.cat([(trained[k] - w).flatten() for k, w in untrained.items()])
    assert expected.norm() > 0
    assert (moved - expected).norm() < 0.01 * expected.norm()


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(TaskConfig(name=str(EXAMPLES / "custom_task.py")))


def test_custom_task_splits_share_no_set_of_letters(task: Task) -> None:
    check_task(task)
    sets = {
        split: {"".join(sorted(p.gold)) for p in task.problems(split)}
        for split in ("train", "validation", "test")
    }
    assert {split: len(golds) for split, golds in sets.items()} == {
        "train": 2200,
        "validation": 200,
        "test": 200,
    }
    assert not any(a & b for a, b in combinations(sets.values(), 2))


def test_custom_task_question_has_the_letters_out_of_order(task: Task) -> None:
    for problem in task.problems("train"):
        asked = "".join(problem.question.split()[-3:])
        assert "".join(sorted(asked)) == problem.gold != asked


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("<answer>a d k</answer>", 1.0),
        ("<think>a is first</think><answer>A, D, K</answer>", 1.0),
        ("<answer>a k d</answer>", 1 / 3),
        ("<answer>a d k x y z</answer>", 0.5),
        ("<answer>k a d</answer>", 0.0),
        ("<answer>a d k</answer> or <answer>a k d</answer>", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer>a d k", 0.0),
        ("a d k", 0.0),
        ("", 0.0),
    ],
)
def test_custom_task_reward_of_a_response(task: Task, response: str, value: float) -> None:
    reward = task.reward(rl.Problem("sort-adk", "", "adk"), response)
    assert isinstance(reward, rl.Reward)
    assert reward.value == pytest.approx(value)
    assert reward.strict is not None
    assert reward.strict.correct == (value == 1)


def test_custom_task_trains_by_the_command(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        **settings,
        **SMALL_STEP,
        **PROMPT_TOKENS,
        "train.steps": 1,
        "eval.n": 3,
        "eval.validation_n": 2,
    }
    flags = [word for k, v in options.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    command = ["train", "--task.name", str(EXAMPLES / "custom_task.py"), "--prompt.prefill", "<answer>"]
    assert main([*command, *flags, "--run", "letters"]) == 0
    rollouts = list(rl.load("letters").read("rollouts"))
    assert len(rollouts) == 20
    assert all(line["problem_id"] == f"sort-{line['gold']}" for line in rollouts)
    assert not any(line["fault"] for line in rollouts)


@pytest.fixture
def arguments(settings: dict[str, Any]) -> list[str]:
    """A small comparison, with a recipe whose prompts are long enough for word problems."""
    recipe = Path(RECIPE).read_text(encoding="utf-8").replace("max_tokens = 256", "max_tokens = 512")
    Path("small.toml").write_text(recipe, encoding="utf-8")
    options = ["--presets", "reinforce-lite", "grpo", "--seeds", "0", "1", "--steps", "2"]
    return ["--recipe", "small.toml", "--model", settings["model.name"], *options]


def test_compare_objectives_prints_each_run_with_its_accuracy(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    compare = load_example("compare_objectives")
    compare.main(arguments)
    table = capsys.readouterr().out
    rows = re.findall(r"^(reinforce-lite|grpo) +(\d|mean) +(.+)$", table, re.MULTILINE)
    assert [row[:2] for row in rows] == [
        (preset, seed) for preset in ("reinforce-lite", "grpo") for seed in ("0", "1", "mean")
    ]
    for preset, seed, cells in rows:
        if seed != "mean":
            run = rl.load(f"compare-{preset}-{seed}")
            assert (run.config.objective.preset, run.config.train.seed) == (preset, int(seed))
            assert cells.split("  ")[0] == compare.accuracy(run.before)
            assert cells.rstrip().endswith(compare.accuracy(run.after))


def test_compare_objectives_continues_without_repeating_finished_runs(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    compare = load_example("compare_objectives")
    compare.main([*arguments, "--seeds", "0"])
    before = Path("runs/compare-grpo-0/steps.jsonl").read_bytes()
    compare.main(arguments)
    assert Path("runs/compare-grpo-0/steps.jsonl").read_bytes() == before
    assert len(list(Path("runs").iterdir())) == 4


def test_compare_objectives_plots_the_curves(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, in_tmp: Path
) -> None:
    pytest.importorskip("matplotlib", reason='needs the extra "experiments"')
    monkeypatch.setenv("MPLBACKEND", "Agg")
    load_example("compare_objectives").main([*arguments, "--seeds", "0", "--plot", "curves.png"])
    assert (in_tmp / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_compare_objectives_table_has_intervals_and_means() -> None:
    def run(before: float, after: float) -> Any:
        results = [{"strict": p, "strict_interval": (p - 0.062, p + 0.06), "n": 200} for p in (before, after)]
        return SimpleNamespace(before=results[0], after=results[1])

    runs = {
        "reinforce-lite": [run(0.285, 0.68), run(0.285, 0.644)],
        "rloo": [run(0.285, 0.5), run(0.285, 0.6)],
    }
    assert load_example("compare_objectives").table(runs, seeds=[0, 7]).splitlines() == [
        "preset            seed  before            after",
        "reinforce-lite       0  28.5% (22-34)     68.0% (62-74)",
        "reinforce-lite       7  28.5% (22-34)     64.4% (58-70)",
        "reinforce-lite    mean  28.5%             66.2%",
        "rloo                 0  28.5% (22-34)     50.0% (44-56)",
        "rloo                 7  28.5% (22-34)     60.0% (54-66)",
        "rloo              mean  28.5%             55.0%",
    ]


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    return found


def test_notebook_is_nbformat_4_without_outputs(notebook: dict[str, Any]) -> None:
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids))
    for cell in notebook["cells"]:
        assert {"cell_type", "id", "metadata", "source"} <= cell.keys()
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_notebook_runs_from_top_to_bottom(
    notebook: dict[str, Any],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib", reason='needs the extra "experiments"')
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            steps = namespace["overrides"]["train.steps"] = 2
            namespace["overrides"] |= settings | SMALL_STEP | PROMPT_TOKENS | {"eval.n": 4}
    run = namespace["run"]
    assert [row["step"] for row in namespace["rows"]] == list(range(1, steps + 1))
    assert list(namespace["axes"].lines[0].get_ydata()) == [line["accuracy/strict"] for line in run.steps]
    assert "after (n = 4)" in run._repr_html_()
    printed = capsys.readouterr().out
    for text in (namespace["response"].text, namespace["response"].untrained):
        assert text in printed
