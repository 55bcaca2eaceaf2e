"""The step that is tried first, and what happens where memory runs out."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.paths import RECIPE
from helpers.tiny import END, ToyTask
from reinforce_lite import api
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks.base import Callback
from reinforce_lite.cli.app import main
from reinforce_lite.config import PresetName
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.engines.oom_retry import OOMRetryEngine
from reinforce_lite.engines.scripted import ScriptedEngine
from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.learner.objective import compute_advantages
from reinforce_lite.learner.presets import PRESETS
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.policy import Policy
from reinforce_lite.pipeline import Pipeline, build_pipeline
from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.runlog.runs import create_run
from reinforce_lite.trainer import session, trainer
from reinforce_lite.trainer.checkpoint import latest_checkpoint
from reinforce_lite.trainer.dry_run import dry_run, full_length_groups, groups_that_fill
from reinforce_lite.types import Group, Problem, Prompt, Sampling

pytestmark = pytest.mark.usefixtures("no_spare_memory")


@pytest.fixture
def settings(model_folder: Path, in_tmp: Path) -> dict[str, Any]:
    return {"model.name": str(model_folder), "rollout.engine": "native"}


class Uneven(ToyTask):
    """Questions of different lengths; the longest stand in the middle."""

    def problems(self, split: str) -> list[Problem]:
        return [Problem(f"{split}-{i}", split[:2] + "?" * (7 * i % 12), str(i)) for i in range(12)]


def built(settings: dict[str, Any], task: ToyTask) -> Pipeline:
    return build_pipeline(resolve_config(RECIPE, settings, task), task)


@pytest.mark.parametrize(
    ("preset", "options", "learned_from", "questions"),
    [
        ("reinforce-lite", {}, 4, [13, 12, 11, 10, 9]),
        ("article", {}, 1, [13, 12, 11, 10, 9]),
        ("article", {"train.warm_start": 1}, 4, [13, 12, 11, 10, 9]),
        (
            "reinforce-lite",
            {"train.warm_start": 1, "rollout.refill": 2},
            4,
            [13, 12, 11, 10, 9, 8, 7, 6, 5, 4],
        ),
    ],
)
def test_it_is_the_largest_step(
    settings: dict[str, Any], preset: PresetName, options: Any, learned_from: int, questions: list[int]
) -> None:
    """5 questions of 12, those of 9 to 13 letters; 4 answers each, all as long as may be.

    In a warm start all completions may be learned from, with refill those of twice as many questions.
    """
    pipeline = built(settings | options, Uneven())
    seen: list[tuple[list[Group], torch.Tensor]] = []

    class Spy(Updater):
        def compute_gradient(self, groups: Any, weights: torch.Tensor) -> Any:
            seen.append((list(groups), weights))
            assert any(name.startswith("exp_avg/") for name in self.state_dict())  # as in every later step
            return super().compute_gradient(groups, weights)

    updater = Spy(pipeline.policy, pipeline.config.update, 0.7, 0)
    dry_run(pipeline, updater, PRESETS[preset])
    [(groups, weights)] = seen
    assert [len(g.problem.question) for g in groups] == questions
    limit = pipeline.config.rollout.max_new_tokens
    assert {len(r.completion.token_ids) for g in groups for r in g.rollouts} == {limit}
    assert [int((row != 0).sum()) for row in weights] == [learned_from] * len(questions)
    assert not any(name.startswith("exp_avg/") for name in updater.state_dict())


def test_a_completion_that_repeats_itself_is_of_full_length_too(settings: dict[str, Any]) -> None:
    pipeline = built(settings | {"rollout.max_new_tokens": 90}, ToyTask())
    pipeline.engine = ScriptedEngine(pipeline.policy.tokenizer, END, lambda prompt, sample: "a" * 100)
    groups = full_length_groups(pipeline, pipeline.problems("train", 2))
    assert [g.lengths for g in groups] == [[90] * 4] * 2


def test_it_learns_from_two_full_micro_batches_by_hand(settings: dict[str, Any]) -> None:
    """5 questions with 4 answers of 8 tokens: 32 each. Micro-batches of 40 are full twice after three."""
    pipeline = built(settings | {"update.micro_batch_tokens": 40}, Uneven())
    learned: list[list[bool]] = []

    class Spy(Updater):
        def compute_gradient(self, groups: Any, weights: torch.Tensor) -> Any:
            learned.extend((weights != 0).tolist())
            return super().compute_gradient(groups, weights)

    updater = Spy(pipeline.policy, pipeline.config.update, 0.7, 0)
    dry_run(pipeline, updater, PRESETS["reinforce-lite"])
    assert learned == [[True] * 4] * 3 + [[False] * 4] * 2
    one = torch.tensor([[1.0, 0, 0, 0]] * 5)  # of which 8 tokens are learned from
    sizes = [[8] * 4] * 5
    assert [groups_that_fill(one, sizes, tokens) for tokens in (8, 9, 40, 99)] == [1, 2, 5, 6]


def test_its_figure_stands_beside_the_plans(settings: dict[str, Any]) -> None:
    run = api.train(RECIPE, settings | {"train.steps": 4}, task=ToyTask(), run="a", quiet=True)
    found = run.summary["memory"]
    assert found["planned_bytes"] > 5 * 10**8  # Python and its libraries are most of it
    assert 0 < found["dry_run_bytes"] <= found["peak_bytes"] == run.summary["peak_memory_bytes"]
    longer = api.train(
        RECIPE, settings | {"train.steps": 6}, task=ToyTask(), run="a", resume=True, quiet=True
    )
    assert longer.summary["memory"]["dry_run_bytes"] == found["dry_run_bytes"]  # it was tried once


def test_dry_run_is_omitted_where_a_cpu_has_memory_to_spare(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reinforce_lite.utils.memory.available_bytes", lambda: 10**15)
    run = api.train(RECIPE, settings | {"train.steps": 1}, task=ToyTask(), run="a", quiet=True)
    assert run.summary["memory"]["dry_run_bytes"] is None


class Full:
    """Stands for memory that has no room for more than `rows` answers or `tokens` to learn from at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int = 999, tokens: int = 10**6) -> None:
        self.rows, self.tokens = rows, tokens
        self.generate, self.gradient = NativeEngine.generate, Updater._gradient
        monkeypatch.setattr(NativeEngine, "generate", lambda *args: self._generate(*args))
        monkeypatch.setattr(Updater, "_gradient", lambda *args: self._gradient(*args))

    def _generate(self, engine: NativeEngine, *args: Any) -> Any:
        if engine.max_num_seqs > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.generate(engine, *args)

    def _gradient(self, updater: Updater, *args: Any) -> Any:
        if updater.micro_batch_tokens > self.tokens:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")
        return self.gradient(updater, *args)


@pytest.mark.case(13)
def test_fewer_at_once_are_the_same_answers(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    prompts = [Prompt(tuple(range(10 + i, 20 + 2 * i))) for i in range(4)]
    sampling = Sampling(3, max_new_tokens=9)
    expected = NativeEngine(policy).generate(prompts, sampling, 1)
    counts: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        Full(patch, rows=4)
        engine = OOMRetryEngine(NativeEngine(policy))
        found = engine.generate(prompts, sampling, 1, counts.append)
    assert engine.max_num_seqs == 3  # of 12 answers: 6, then 3
    assert [[c.token_ids for c in group] for group in found] == [[c.token_ids for c in g] for g in expected]
    assert sum(counts) == 12
    assert "max_num_seqs 3" in caplog.text


def test_progress_of_what_was_thrown_away_is_taken_back(policy: Policy) -> None:
    class Late(NativeEngine):
        def generate(self, prompts: Any, sampling: Any, seed: int, progress: Any = None) -> Any:
            if self.max_num_seqs > 2:
                progress(5)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().generate(prompts, sampling, seed, progress)

    counts: list[int] = []
    OOMRetryEngine(Late(policy)).generate([Prompt((10, 11))], Sampling(4, max_new_tokens=3), 1, counts.append)
    assert counts[:2] == [5, -5]
    assert sum(counts) == 4


def test_a_single_answer_that_does_not_fit_is_said(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    Full(monkeypatch, rows=0)
    with pytest.raises(DoesNotFitError, match="a single sequence does not fit"):
        OOMRetryEngine(NativeEngine(policy)).generate([Prompt((10, 11))], Sampling(2, max_new_tokens=3), 1)


@pytest.mark.case(13)
def test_it_runs_out_before_training_or_never(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 3, the plan on standard error, and nothing was started."""
    (Path("mine.jsonl")).write_text(
        "".join(json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(100))
    )
    Full(monkeypatch, tokens=1)
    args = ["--model.name", settings["model.name"], "--task.name", "jsonl", "--task.path", "mine.jsonl"]
    assert main(["train", RECIPE, *args, "--run", "a"]) == 3
    err = capsys.readouterr().err
    assert "the update of a single completion does not fit into memory" in err
    assert "optimizer state" in err
    assert "with the recipe unchanged" not in err
    assert not Path("runs/a").exists()


class FullFrom(Callback):
    """Memory is smaller from some step on."""

    def __init__(self, full: Full, step: int, rows: int, tokens: int) -> None:
        self.full, self.step, self.small = full, step, (rows, tokens)

    def stepped(self, metrics: StepMetrics, groups: Any) -> None:
        if metrics.step == self.step:
            self.full.rows, self.full.tokens = self.small


@pytest.mark.case(13)
def test_a_step_that_ran_out_is_in_the_log_and_a_resume_goes_on_as_small(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resolved = resolve_config(RECIPE, settings | {"train.steps": 4}, ToyTask())
    full = Full(monkeypatch)
    with caplog.at_level(logging.WARNING):
        run = session.train(resolved, create_run("a"), ToyTask(), FullFrom(full, 2, 5, 300))
    asked = resolved.update.micro_batch_tokens
    halved = next(asked // 2**k for k in range(30) if asked // 2**k <= 300)
    assert [s["memory/micro_batch_tokens"] for s in run.steps] == [asked, asked, halved, halved]
    assert [s["memory/max_num_seqs"] for s in run.steps] == [256, 256, 5, 5]
    assert "max_num_seqs 5" in caplog.text
    full.rows, full.tokens = 999, 10**6  # there would be room again
    longer = resolve_config(RECIPE, settings | {"train.steps": 5}, ToyTask())
    run = session.train(longer, run, ToyTask())
    assert run.steps[-1]["memory/micro_batch_tokens"] == halved
    assert run.steps[-1]["memory/max_num_seqs"] == 5


@pytest.mark.case(13)
def test_where_nothing_helps_the_last_step_is_saved(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = api.train(RECIPE, settings | {"train.steps": 4}, task=ToyTask(), run="straight", quiet=True)
    resolved = resolve_config(RECIPE, settings | {"train.steps": 4}, ToyTask())
    with monkeypatch.context() as patch:
        full = Full(patch)
        with pytest.raises(DoesNotFitError) as caught:
            session.train(resolved, create_run("cut"), ToyTask(), FullFrom(full, 3, 999, 0))
    saved = latest_checkpoint(Path("runs/cut/checkpoints"))
    assert saved is not None
    assert saved.step == 3
    assert "train --run cut --resume" in caught.value.remedy
    smaller = {"update.activation_checkpointing": True, "update.micro_batch_tokens": 100}
    asked = settings | {"train.steps": 4} | smaller
    resumed = api.train(RECIPE, asked, task=ToyTask(), run="cut", resume=True, quiet=True)
    assert resumed.steps[-1]["memory/micro_batch_tokens"] == 100
    assert [s["step"] for s in resumed.steps] == [1, 2, 3, 4]
    a, b = (load_file(r.path / "model/model.safetensors") for r in (straight, resumed))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


@pytest.mark.case(13)
def test_memory_that_runs_out_while_weights_change_leaves_the_step_before(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the weights are those of step 4: neither they nor a line of that step are saved."""
    straight = api.train(RECIPE, settings | {"train.steps": 3}, task=ToyTask(), run="straight", quiet=True)
    real = Updater.apply_gradient

    def apply(updater: Updater, gradient: Any, step: int) -> bool:
        if step < 4:
            return real(updater, gradient, step)
        next(iter(updater.params.values())).data.zero_()
        raise RuntimeError("could not create a primitive")

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "apply_gradient", apply)
        with pytest.raises(DoesNotFitError, match="could not create a primitive") as caught:
            api.train(RECIPE, settings | {"train.save_every": 3}, task=ToyTask(), run="cut", quiet=True)
    assert "step 3 is saved" in caught.value.remedy
    saved = latest_checkpoint(Path("runs/cut/checkpoints"))
    assert saved is not None
    assert saved.step == 3
    weights = load_file(straight.path / "model/model.safetensors")
    assert all(torch.equal(saved.tensors[f"weight/{name}"], weight) for name, weight in weights.items())


@pytest.mark.case(13)
def test_memory_that_runs_out_anywhere_saves_the_last_step(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 3 and the plan, which doesn't say that the recipe fits, though it would have."""
    (Path("mine.jsonl")).write_text(
        "".join(json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(100))
    )
    calls = 0

    def full(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError
        return compute_advantages(*args)

    monkeypatch.setattr(trainer, "compute_advantages", full)
    args = ["--model.name", settings["model.name"], "--task.name", "jsonl", "--task.path", "mine.jsonl"]
    assert main(["train", RECIPE, *args, "--run", "a"]) == 3
    err = capsys.readouterr().err
    assert "step 2 is saved" in err
    assert "with the recipe unchanged" not in err
    saved = latest_checkpoint(Path("runs/a/checkpoints"))
    assert saved is not None
    assert saved.step == 2
