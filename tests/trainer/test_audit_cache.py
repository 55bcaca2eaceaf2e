"""An audit's samples are those of the run that follows, to the bit; nothing in the cache can harm a run."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.paths import RECIPE
from helpers.tiny import ToyTask, make_model, make_tokenizer
from reinforce_lite import api
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks.base import SAMPLING, Callback
from reinforce_lite.errors import UsageError
from reinforce_lite.pipeline import Pipeline, build_pipeline
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import create_run
from reinforce_lite.tasks import reward_sources, task_fingerprint
from reinforce_lite.trainer import audit_cache, session
from reinforce_lite.trainer.audit import audit
from reinforce_lite.trainer.audit_cache import KeptAudit, find_audit, first_step, keep_audit
from reinforce_lite.types import Completion, Problem, Reward
from reinforce_lite.utils.environment import describe_machine

TIMES = ("time/", "tokens_per_second/", "step_time", "memory/", "seconds")
TAKEN = "are those of the audit"


class ToyNumbers(ToyTask):
    """The reward depends on the gold too: one that pays the same for every problem is broken."""

    def reward(self, problem: Problem, completion: str) -> Reward:
        return Reward(float((sum(map(ord, completion)) + int(problem.gold)) % 3 == 0))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "audits"


def do_audit(settings: dict[str, Any]) -> Mapping[str, Any]:
    return audit(resolve_config(RECIPE, settings, ToyNumbers()), 0.0, ToyNumbers()).to_record()


def train(settings: dict[str, Any], name: str, resume: bool = False) -> Run:
    return api.train(RECIPE, settings, task=ToyNumbers(), run=name, quiet=True, resume=resume)


def logs(run: Run) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in run.read(name)]
        for name in ("steps", "rollouts", "evals", "eval_rollouts")
    }


def assert_same(a: Run, b: Run) -> None:
    assert logs(a) == logs(b)
    step = a.summary["steps"]
    for file in ("model/model.safetensors", f"checkpoints/step-{step}/state.safetensors"):
        x, y = load_file(a.path / file), load_file(b.path / file)
        assert x.keys() == y.keys()
        assert all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("refill", [1, 2])
@pytest.mark.parametrize("engine", ["native", "hf"])
def test_a_run_with_the_audits_samples_equals_one_without(
    engine: str, refill: int, settings: dict[str, Any], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings |= {"rollout.engine": engine, "rollout.refill": refill, "train.steps": 3}
    without = train(settings, "without")
    assert TAKEN not in caplog.text
    do_audit(settings)
    with_it = train(settings, "with")
    assert caplog.text.count(TAKEN) == 1
    assert_same(with_it, without)


def test_an_adapters_first_step_too(
    settings: dict[str, Any], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings |= {"adapter.rank": 2, "train.steps": 2, "rollout.engine": "native"}
    without = train(settings, "without")
    do_audit(settings)
    assert_same(train(settings, "with"), without)
    assert TAKEN in caplog.text


class Phases(Callback):
    """Counts the times that a step samples, and keeps the seconds to the end as told after each step."""

    def __init__(self) -> None:
        self.sampled = 0
        self.etas: list[float] = []

    def started(self, config: Any, run: Run, step: int, device: str, eta: Any) -> None:
        self.eta = eta

    def phase(self, name: str, total: int = 0) -> None:
        self.sampled += name == SAMPLING

    def stepped(self, metrics: Any, groups: Any) -> None:
        self.etas.append(self.eta())


def test_nothing_is_sampled_twice_and_the_time_saved_once_is_not_counted_on(
    settings: dict[str, Any], cache: Path
) -> None:
    settings |= {"train.steps": 2}
    do_audit(settings)
    pipeline = make_pipeline(settings)
    kept = find(pipeline)
    assert kept
    keep_audit(replace(kept, seconds=1000.0), pipeline, *about(pipeline))
    phases = Phases()
    session.train(resolve_config(RECIPE, settings, ToyNumbers()), create_run("a"), ToyNumbers(), phases)
    assert phases.sampled == 1
    assert phases.etas[0] > 1000


def make_pipeline(settings: dict[str, Any]) -> Pipeline:
    return build_pipeline(resolve_config(RECIPE, settings, ToyNumbers()), ToyNumbers())


def about(pipeline: Pipeline) -> tuple[str, dict[str, str]]:
    return task_fingerprint(pipeline.task), reward_sources(pipeline.task)


def find(pipeline: Pipeline) -> KeptAudit | None:
    return find_audit(pipeline, *about(pipeline))


@pytest.mark.parametrize(
    ("changes", "is_found"),
    [
        ({"rollout.selection": "adaptive", "rollout.refill": 2}, True),
        ({"train.steps": 3, "update.learning_rate": 1e-3, "prompt.date": "2026-01-01"}, True),
        ({"train.seed": 1}, False),
        ({"rollout.temperature": 0.8}, False),
        ({"rollout.group_size": 5}, False),
        ({"rollout.prompts_per_step": 4}, False),
        ({"prompt.instruction": "Say it."}, False),
        ({"eval.max_new_tokens": 20}, False),
        ({"adapter.rank": 2}, False),
        ({"model.dtype": "bfloat16"}, False),
    ],
)
def test_an_audit_is_found_by_what_its_samples_depend_on(
    changes: dict[str, Any], is_found: bool, settings: dict[str, Any], cache: Path
) -> None:
    do_audit(settings)
    assert (find(make_pipeline(settings | changes)) is not None) == is_found


def test_other_weights_data_rewards_versions_and_threads_are_another_audit(
    settings: dict[str, Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    settings = {"model.name": str(tmp_path / "model")}
    do_audit(settings)
    pipeline = make_pipeline(settings)
    data, reward = about(pipeline)
    assert find_audit(pipeline, data, reward)
    assert find_audit(pipeline, "other", reward) is None
    assert find_audit(pipeline, data, {"mine.py": "other"}) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 99)
        assert find(pipeline) is None
    with monkeypatch.context() as patch:
        machine = describe_machine(pipeline.policy.device, pipeline.policy.dtype)
        patch.setattr(audit_cache, "describe_machine", lambda *_: machine | {"versions": {"torch": "9"}})
        assert find(pipeline) is None
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "model")
    assert find(make_pipeline(settings)) is None


def test_what_is_kept_is_read_back_exactly(settings: dict[str, Any], cache: Path) -> None:
    """Floats that need all their digits, and half a character."""
    pipeline = make_pipeline(settings)
    completion = Completion((5, 2), "half \ud83d ünd\u2028", True, (-0.1 - 2**-55, -1e-300), True)
    kept = KeptAudit({"ways": []}, 7, ("p",), ((completion,),), 0.25)
    keep_audit(kept, pipeline, *about(pipeline))
    assert find(pipeline) == kept
    problem = Problem("p", "", "")
    assert kept.completions_of([problem], 7) == [[completion]]
    assert kept.completions_of([problem], 8) is None
    assert kept.completions_of([problem, problem], 7) is None
    assert kept.completions_of([Problem("q", "", "")], 7) is None


@pytest.mark.case(4)
@pytest.mark.parametrize("how", ["cut", "flipped", "foreign", "folder"])
def test_a_damaged_audit_costs_a_warning(
    how: str, settings: dict[str, Any], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings |= {"train.steps": 1}
    without = train(settings, "without")
    do_audit(settings)
    (file,) = cache.glob("*.json")
    content = bytearray(file.read_bytes())
    if how == "folder":
        file.unlink()
        file.mkdir()
    else:
        position = content.index(b"logprobs") + 15
        content[position] ^= 1
        file.write_bytes({"cut": bytes(content[:position]), "flipped": bytes(content), "foreign": b"{}"}[how])
    assert_same(train(settings, "with"), without)
    warnings = [r.getMessage() for r in caplog.records if "audit" in r.getMessage()]
    assert len(warnings) == 1
    assert "is ignored" in warnings[0]
    assert not (Path("runs/with") / "audit.json").exists()


def test_a_cache_that_cannot_be_written_costs_a_warning(
    settings: dict[str, Any], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file where the cache should be")
    assert do_audit(settings)["ways"]
    assert "not kept" in caplog.text
    assert train(settings | {"train.steps": 1}, "a").summary["stopped"] == "steps"


@pytest.mark.parametrize("secret", ["train-3", "some other secret"])
def test_samples_that_hold_a_secret_are_not_kept(
    secret: str, settings: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reinforce_lite.utils.secrets.MIN_LENGTH", 5)
    monkeypatch.setenv("MY_TOKEN", secret)
    settings |= {"rollout.prompts_per_step": 12}  # so that train-3 is asked
    do_audit(settings)
    assert (find(make_pipeline(settings)) is None) == (secret == "train-3")


def test_only_the_newest_are_kept(settings: dict[str, Any], cache: Path) -> None:
    pipeline = make_pipeline(settings)
    problems, seed = first_step(pipeline)
    kept = KeptAudit({}, seed, tuple(p.id for p in problems), (), 0.0)
    for i in range(audit_cache.KEPT + 3):
        keep_audit(kept, pipeline, str(i), {})
    assert len(list(cache.iterdir())) == audit_cache.KEPT
    assert find_audit(pipeline, "2", {}) is None
    assert find_audit(pipeline, "3", {}) == kept


ADAPTIVE = {"rollout.selection": "adaptive", "rollout.prompts_per_step": 3, "train.steps": 6}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


class DiesAt(Callback):
    """Dies in a step, before or after the first checkpoint, which is that of step 2."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, metrics: Any, groups: Any) -> None:
        if metrics.step == self.step:
            raise Killed


@pytest.mark.case(5)
@pytest.mark.parametrize("step", [1, 5])
def test_an_audit_is_the_prior_of_adaptive_selection_and_a_resume_needs_no_cache(
    step: int, settings: dict[str, Any], cache: Path
) -> None:
    settings |= ADAPTIVE
    unaudited = train(settings, "unaudited")
    record = do_audit(settings)
    straight = train(settings, "straight")
    asked = [[line["problem_id"] for line in run.read("rollouts")] for run in (unaudited, straight)]
    assert asked[0] != asked[1]
    assert straight.audit == json.loads(json.dumps(record))
    assert unaudited.audit == {}
    config = resolve_config(RECIPE, settings, ToyNumbers())
    with pytest.raises(Killed):
        session.train(config, create_run("killed"), ToyNumbers(), DiesAt(step))
    shutil.rmtree(cache)
    assert_same(train(settings, "killed", resume=True), straight)
    late = create_run("late")
    with pytest.raises(Killed):
        session.train(config, late, ToyNumbers(), DiesAt(step))
    do_audit(settings)  # after the run was started: it does not count
    assert_same(train(settings, "late", resume=True), unaudited)
    assert late.audit == {}


def test_the_file_of_a_run_that_was_never_started_is_not_the_next_ones(
    settings: dict[str, Any], cache: Path
) -> None:
    folder = Path("runs/a")
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text("{}")
    train(settings | {"train.steps": 1}, "a")
    assert not (folder / "audit.json").exists()


@pytest.mark.case(4)
def test_a_damaged_audit_of_a_run_is_told(settings: dict[str, Any], cache: Path) -> None:
    do_audit(settings)
    run = train(settings | {"train.steps": 1}, "a")
    (run.path / "audit.json").write_text("{")
    with pytest.raises(UsageError, match=r"audit\.json is damaged"):
        train(settings | {"train.steps": 2}, "a", resume=True)
