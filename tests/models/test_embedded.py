"""The real embedded model: opened, asked, trained for a moment; `make slow` trains it to the end."""

from pathlib import Path

import pytest
import torch

import reinforce_lite as rl
from reinforce_lite.config import load_config
from reinforce_lite.engines.hf import HFEngine
from reinforce_lite.errors import ReinforceLiteError
from reinforce_lite.models.embedded import EMBEDDED_NAME, embedded_folder
from reinforce_lite.models.policy import load_policy
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.types import Sampling


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return embedded_folder()
    except ReinforceLiteError as error:
        pytest.skip(f"the embedded model can't be had here: {error.cause}")


def test_it_is_smollm2_and_speaks(folder: Path) -> None:
    policy = load_policy(EMBEDDED_NAME, dtype="float32", device="cpu")
    assert sum(p.numel() for p in policy.model.parameters()) == 134_515_008
    assert policy.eos_token_ids == {2}
    ids = policy.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = policy.model(ids).logits[0, -1].argmax()
    assert policy.tokenizer.decode(best) == " Paris"


def test_native_says_what_transformers_says(folder: Path) -> None:
    """Greedy text and log-probabilities on quickstart problems, in float32."""
    pipeline = build_pipeline(load_config("quickstart", {"model.dtype": "float32", "model.device": "cpu"}))
    prompts = [pipeline.prompter(p.question) for p in pipeline.problems("validation", 8)]
    greedy = Sampling(samples=1, max_new_tokens=40, temperature=0.0)
    native = pipeline.engine.generate(prompts, greedy, seed=0)
    plain = HFEngine(pipeline.policy).generate(prompts, greedy, seed=0)
    for (a,), (b,) in zip(native, plain, strict=True):
        assert a.text == b.text
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_two_steps_of_the_quickstart(folder: Path, in_tmp: Path) -> None:
    small = {"train.steps": 2, "rollout.prompts_per_step": 3, "eval.n": 12, "eval.validation_n": 4}
    run = rl.train("quickstart", small, run="a", quiet=True)
    assert [step["step"] for step in run.steps] == [1, 2]
    assert any(step["updated"] for step in run.steps)
    lines = list(run.read("rollouts"))
    assert sum("<answer>" in line["completion"] for line in lines) > len(lines) / 2  # it has the format
    assert len({line["completion"] for line in lines}) > len(lines) / 4  # and is no parrot


@pytest.mark.slow
def test_the_quickstart_learns(folder: Path, in_tmp: Path) -> None:
    evals = rl.train("quickstart", run="a", quiet=True).summary["evals"]
    assert evals["after"]["strict"] >= 0.5
    assert evals["after"]["strict"] - evals["before"]["strict"] >= 0.3
    assert evals["after"]["lenient"] - evals["before"]["lenient"] >= 0.1
    assert max(evals["paired_p"].values()) < 0.05
