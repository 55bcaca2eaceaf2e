"""The Python API where it is more than the command of the same name."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import reinforce_lite as rl
from helpers.paths import RECIPE
from helpers.tiny import END, ToyTask
from reinforce_lite import Problem, api, engines, pipeline
from reinforce_lite.cli.args import parse_eval
from reinforce_lite.config import Config, load_config
from reinforce_lite.engines.base import Engine
from reinforce_lite.errors import UsageError
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.pipeline import Pipeline
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.runlog.diagnosis import diagnose
from reinforce_lite.runlog.runs import trained_config
from reinforce_lite.tasks import stop_strings
from reinforce_lite.trainer.export import export_model

QUESTION = "2 + 2?"


def greedy(model: str, run: rl.Run) -> str:
    """The response by plain transformers."""
    policy = load_policy(model, dtype="float32", device="cpu")
    prompt = PromptBuilder(policy.tokenizer, run.config.prompt)(QUESTION)
    ids = policy.model.generate(
        input_ids=torch.tensor([prompt.token_ids]),
        max_new_tokens=run.config.rollout.max_new_tokens,
        do_sample=False,
    )
    written = ids[0, len(prompt.token_ids) :].tolist()
    text: str = policy.tokenizer.decode([i for i in written if i != END])
    return prompt.prefill + text


def test_ask_gives_the_responses_of_both_models(settings: dict[str, Any]) -> None:
    run = rl.train(RECIPE, settings | {"train.steps": 2, "eval.n": 2}, task=ToyTask(), run="a", quiet=True)
    response = rl.ask(run, QUESTION)
    assert response.text == str(response) == greedy(str(run.path / "model"), run)
    assert response.untrained == greedy(settings["model.name"], run)
    assert response.text != response.untrained
    assert rl.ask("a", QUESTION) == response
    assert rl.ask(run.path / "model", QUESTION) == rl.Response(response.text, None)
    assert rl.load(run).path == rl.load("a").path == run.path
    evaluate: Callable[..., rl.Evaluation] = rl.evaluate
    assert evaluate(run, task=ToyTask(), quiet=True) == evaluate("a", task=ToyTask(), quiet=True)


def test_a_question_longer_than_those_of_training_is_told_or_refused(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = rl.train(RECIPE, settings | {"train.steps": 1}, task=ToyTask(), run="a", quiet=True)
    limit = run.config.prompt.max_tokens
    rl.ask("a", QUESTION)
    assert "tokens; in training" not in caplog.text
    rl.ask("a", "?" * limit)  # a token is a byte
    assert caplog.text.count(f"none has more than prompt.max_tokens = {limit}") == 1  # though two are asked
    with pytest.raises(UsageError, match="do not fit into the context") as caught:
        rl.ask("a", "?" * 100_000)
    assert caught.value.remedy == "ask a shorter question"


TEXT: Any = Problem("a", "?", "")


def task_of(problems: Any) -> SimpleNamespace:
    return SimpleNamespace(problems=lambda split: problems, reward=ToyTask().reward)


@pytest.mark.parametrize(
    ("task", "cause", "remedy"),
    [
        (ToyTask().reward, "not an object with problems(split) and reward(", "SimpleNamespace(problems="),
        (ToyTask, "not an object", "task=ToyTask()"),
        (lambda problem, completion: 1.0, "<lambda>", "SimpleNamespace(problems="),
        ([], "task is [], not", "SimpleNamespace(problems="),
        ("./my_task.py", "not an object", "{\"task.name\": './my_task.py'}"),
        (task_of(iter([])), "problems('train') is of type list_iterator, not a list", "must return a list"),
        (task_of([{"id": "a"}]), "problems('train')[0] is of type dict, not Problem", "must return a list"),
        (
            task_of([Problem("a", "?", ""), replace(TEXT, id=7)]),
            "[1] has its id of type int",
            "return a list",
        ),
        (task_of([replace(TEXT, question=7)]), "[0] has its question of type int", "must return a list"),
    ],
)
def test_what_is_no_task_is_refused_with_a_way_to_make_one(
    task: Any, cause: str, remedy: str, settings: dict[str, Any]
) -> None:
    for call in (rl.train, rl.evaluate):
        with pytest.raises(UsageError) as caught:
            call(RECIPE if call is rl.train else settings["model.name"], settings, task=task, quiet=True)
        assert cause in caught.value.cause
        assert remedy in caught.value.remedy
        assert "\n" not in caught.value.cause + caught.value.remedy
    assert not Path("runs").exists()


def test_the_remedy_for_two_functions_makes_a_task(settings: dict[str, Any]) -> None:
    toy = ToyTask()
    task = SimpleNamespace(problems=toy.problems, reward=toy.reward)
    run = rl.train(RECIPE, settings | {"train.steps": 1, "eval.n": 2}, task=task, run="b", quiet=True)
    assert run.summary["task"] == "SimpleNamespace"


def test_a_gold_of_any_type_is_trained_on(settings: dict[str, Any]) -> None:
    toy = ToyTask()

    def problems(split: Any) -> list[Problem]:
        return [replace(p, gold=Decimal(i)) for i, p in enumerate(toy.problems(split))]  # type: ignore[arg-type]

    task = SimpleNamespace(problems=problems, reward=toy.reward)
    settings |= {"train.steps": 1, "eval.n": 2}
    run = rl.train(RECIPE, settings, task=task, run="c", quiet=True)
    assert {line["gold"] for line in run.read("eval_rollouts") if line["split"] == "test"} == {"0", "1"}
    run = rl.train(RECIPE, settings | {"train.steps": 2}, task=task, run="c", resume=True, quiet=True)
    assert len(run.steps) == 2


def test_a_resume_without_a_name_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs the name of a run"):
        rl.train(RECIPE, settings, task=ToyTask(), resume=True, quiet=True)
    assert not Path("runs").exists()


def test_only_a_runs_own_model_brings_the_runs_config(settings: dict[str, Any], tmp_path: Path) -> None:
    """Not a config.toml that happens to be in the current folder, of this program or of another one."""
    run = rl.train(RECIPE, settings | {"train.steps": 1, "eval.n": 2}, task=ToyTask(), run="d", quiet=True)
    quickstart, limit = trained_config("smollm2-135m"), run.config.rollout.max_new_tokens
    assert quickstart.rollout.max_new_tokens != limit
    assert trained_config(str(run.path / "model")).rollout.max_new_tokens == limit
    shutil.copytree(run.path / "model", "mine")
    for text in ((run.path / "config.toml").read_text(), 'baseURL = "https://example.org/"'):
        Path("config.toml").write_text(text)
        assert trained_config("smollm2-135m") == quickstart
        assert trained_config("mine").rollout == quickstart.rollout


def test_a_finished_run_without_a_model_says_what_is_left(settings: dict[str, Any]) -> None:
    run = rl.train(RECIPE, settings | {"train.steps": 1, "eval.n": 2}, task=ToyTask(), run="e", quiet=True)
    shutil.rmtree(run.path / "model")
    assert "export e" in diagnose(run).next
    shutil.rmtree(run.path / "checkpoints")
    for text in (
        diagnose(run).next,
        refused(lambda: rl.ask("e", QUESTION)),
        refused(lambda: export_model(run)),
    ):
        assert "train a new run" in text
        assert "--resume" not in text


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    return caught.value.remedy


def test_an_error_has_two_lines_in_a_notebook() -> None:
    """IPython shows what this method returns; a bug's class has no such method and keeps its traceback."""
    with pytest.raises(UsageError) as caught:
        rl.load("nothing")
    assert caught.value._render_traceback_() == ["UsageError: there is no run 'nothing'"]
    assert UsageError("cause", "remedy")._render_traceback_() == ["UsageError: cause", "remedy"]


def test_a_model_that_is_asked_has_no_master_weights(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's files are in float32: in 16 bits they would be kept next to the rounded ones."""
    config = load_config(RECIPE, settings | {"model.dtype": "bfloat16"})
    asked: list[Policy] = []

    def make_engine(name: Any, policy: Policy) -> Engine:
        asked.append(policy)
        return engines.make_engine(name, policy)

    monkeypatch.setattr(api, "trained_config", lambda _: config)
    monkeypatch.setattr(api, "make_engine", make_engine)
    assert rl.ask(settings["model.name"], "2+2?").text
    assert [(policy.dtype, policy.master_weights) for policy in asked] == [(torch.bfloat16, None)]


@pytest.mark.parametrize("samples", [0, -1])
def test_evaluate_refuses_no_samples(samples: int, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"samples is {samples}"):
        rl.evaluate(settings["model.name"], task=ToyTask(), samples=samples, quiet=True)


def test_evaluate_names_a_task_that_is_given_as_an_object(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quickstart's task stops at </answer>; a task of one's own has no stop, as in `train`."""
    seen, build = [], pipeline.build_pipeline

    def build_seen(config: Config, *others: Any) -> Pipeline:
        seen.append(stop_strings(config))
        return build(config, *others)

    monkeypatch.setattr(api, "build_pipeline", build_seen)
    rl.evaluate(settings["model.name"], {"eval.n": 1}, task=ToyTask(), quiet=True)
    assert seen == [()]


def test_a_runs_completions_end_as_in_training_whatever_the_task(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rl.train(RECIPE, settings | {"train.steps": 1, "eval.n": 2}, run="tags", quiet=True)
    seen, build = [], pipeline.build_pipeline

    def build_seen(config: Config, *others: Any) -> Pipeline:
        seen.append(stop_strings(config))
        return build(config, *others)

    monkeypatch.setattr(api, "build_pipeline", build_seen)
    for overrides in ({}, {"rollout.stop": ["x"]}):
        rl.evaluate(run, {"eval.n": 1} | overrides, task=ToyTask(), quiet=True)
    assert seen == [("</answer>",), ("x",)]
    for name in ("tags", "runs/tags/model"):
        assert stop_strings(parse_eval([name, "--task.answer-format", "boxed"])[1]) == ("</answer>",)
