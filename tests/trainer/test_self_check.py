"""Models that this program would compute wrong are refused before the first step."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.paths import RECIPE
from helpers.tiny import ToyTask, make_model, make_tokenizer
from reinforce_lite import api
from reinforce_lite.config import Config
from reinforce_lite.engines import make_engine
from reinforce_lite.engines.base import Engine
from reinforce_lite.engines.kv_cache import KVCache
from reinforce_lite.errors import SamplerGapError, UsageError
from reinforce_lite.models import attention, elementwise, llama
from reinforce_lite.models.forward import build_forward_pass
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.self_check import _remedy
from reinforce_lite.types import Prompt, Sampling

STEPS = {"train.steps": 1, "rollout.engine": "native", "model.device": "cpu"}


def train(model: str, run: str = "checked", **overrides: Any) -> Any:
    return api.train(RECIPE, STEPS | {"model.name": model} | overrides, task=ToyTask(), run=run, quiet=True)


def refusal(model: str, **overrides: Any) -> UsageError:
    with pytest.raises(UsageError, match="log-probabilities") as caught:
        train(model, **overrides)
    return caught.value


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_its_gap_is_part_of_the_summary(engine: str, settings: dict[str, Any]) -> None:
    run = train(settings["model.name"], **{"rollout.engine": engine})
    check = run.summary["self_check"]
    assert 0 < check["max_gap"] < 1e-4
    assert check["bound"] == 1e-3
    assert json.loads((run.path / "machine.json").read_text())["self_check"] == check


def test_a_wrong_head_factor_is_refused(in_tmp: Path) -> None:
    """The setting of a family that our list knows, in one that does not use it."""
    make_model(logit_scale=0.9).save_pretrained(in_tmp / "scaled")
    make_tokenizer().save_pretrained(in_tmp / "scaled")
    error = refusal(str(in_tmp / "scaled"))
    assert "native engine" in error.cause
    assert "update" in error.cause
    assert "can't train" in error.remedy
    assert not (in_tmp / "runs" / "checked").exists()


def test_a_wrong_rotary_frequency_is_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rotate: Callable[..., Tensor] = elementwise.rotate

    def twice_the_angle(flat: Tensor, cos: Tensor, sin: Tensor, *sizes: int) -> Tensor:
        return rotate(flat, 2 * cos * cos - 1, 2 * sin * cos, *sizes)

    monkeypatch.setattr(llama, "rotate", twice_the_angle)
    assert "update" in refusal(settings["model.name"]).cause


def test_an_engine_alone_that_is_wrong_is_refused_and_the_other_named(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = KVCache.next_positions
    monkeypatch.setattr(KVCache, "next_positions", lambda cache: right(cache) + 1)
    error = refusal(settings["model.name"])
    assert "update" not in error.cause
    assert "--rollout.engine hf" in error.remedy


def test_scores_in_bfloat16_are_refused_and_float32_named(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What attention off the CPU once did, with biases that make scores of 2,000, as Qwen2.5 has them.

    They are in the two dimensions that rotate slowest, so that all keys of a query have such a score: rounded
    to multiples of 8, their differences are lost.
    """

    def rounded(q: Tensor, keys: Tensor, scale: float, causal: bool, start: int) -> Tensor:
        scores = q @ keys.transpose(-1, -2) * scale
        if torch.equal(q, q.bfloat16().float()):  # those of a bfloat16 model
            scores = scores.bfloat16().float()
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(start + 1)
        return scores.masked_fill_(later, -torch.inf) if causal else scores

    model = make_model(attention_bias=True, initializer_range=0.1)
    for layer in model.model.layers:
        for linear, size in ((layer.self_attn.q_proj, 32.0), (layer.self_attn.k_proj, 128.0)):
            linear.bias.data.zero_().view(-1, 16)[:, [7, 15]] = size
    model.save_pretrained(in_tmp / "biased")
    make_tokenizer().save_pretrained(in_tmp / "biased")
    name = str(in_tmp / "biased")
    assert train(name, "right", **{"model.dtype": "bfloat16"}).summary["self_check"]["max_gap"] < 0.2

    monkeypatch.setattr(attention, "_use_fused_kernel", lambda q: False)
    monkeypatch.setattr(attention, "_scores", rounded)
    assert "--model.dtype float32" in refusal(name, **{"model.dtype": "bfloat16"}).remedy


def test_a_shared_base_keeps_its_dtype(model_folder: Path) -> None:
    """The search for a remedy leaves it as other runs need it."""
    policy, sampling = load_policy(str(model_folder), "bfloat16", "cpu"), Sampling(1, 4)
    policy.is_shared = True
    forward_pass = build_forward_pass(policy.model, policy.llama)
    remedy = _remedy(policy, Config(), forward_pass, [Prompt((1, 40))], sampling, engine_alone=False)
    assert policy.dtype == torch.bfloat16
    assert "can't train" in remedy


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_gap_of_sampler_and_trainer_is_rounding_in_each_step(engine: str, settings: dict[str, Any]) -> None:
    overrides = settings | {"rollout.engine": engine, "train.steps": 3}
    run = api.train(str(RECIPE), overrides, task=ToyTask(), quiet=True)
    gaps = [(line["logprob_gap/mean"], line["logprob_gap/max"]) for line in run.steps if line["updated"]]
    assert gaps
    assert all(0 < mean <= largest < 1e-4 for mean, largest in gaps)
    assert [line["logprob_gap/effective_sample_size"] for line in run.steps] == pytest.approx(
        [1.0] * 3, abs=1e-6
    )


def test_engine_with_old_weights_stops_the_run(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_stale(name: str, policy: Policy, *sizes: int) -> Engine:
        return make_engine(name, deepcopy(policy), *sizes)

    monkeypatch.setattr("reinforce_lite.pipeline.make_engine", make_stale)
    with pytest.raises(SamplerGapError, match="in step 2 "):
        api.train(str(RECIPE), settings | {"train.steps": 4}, task=ToyTask(), run="stale", quiet=True)
    assert [line["step"] for line in Run(Path("runs/stale")).steps] == [1]


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_a_correction_changes_nothing_where_engine_and_update_agree(
    engine: str, settings: dict[str, Any]
) -> None:
    overrides = settings | {"rollout.engine": engine, "rollout.top_p": 1.0, "train.steps": 3}
    corrected = overrides | {"objective.engine_correction": "truncated"}
    runs = [api.train(RECIPE, o, task=ToyTask(), quiet=True) for o in (overrides, corrected)]
    for plain, other in zip(*(run.steps for run in runs), strict=True):
        assert other["reward"] == plain["reward"]
        assert other["loss"] == pytest.approx(plain["loss"], rel=1e-3, abs=1e-6)
        assert other["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
        assert other["logprob_gap/max"] < 1e-4
        assert other["entropy"] != plain["entropy"]  # at the temperature of the rollout


def test_a_correction_with_top_p_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"rollout.top_p 0\.9 "):
        api.train(RECIPE, settings | {"objective.engine_correction": "truncated"}, task=ToyTask(), quiet=True)
