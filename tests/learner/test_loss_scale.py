"""Updates in float16: the scaled loss against float32, overflows, and what resumes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.groups import make_groups, make_weights
from helpers.model_configs import make_family
from helpers.tiny import END, make_tokenizer
from reinforce_lite.config import AdapterConfig, UpdateConfig
from reinforce_lite.learner import loss_scale
from reinforce_lite.learner.loss_scale import LARGEST, START, LossScale
from reinforce_lite.learner.updater import GradientStats, TrainableGroup, Updater
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.policy import Policy, load_policy


def make_updater(folder: Path, dtype: str = "float16", factor: float = START) -> Updater:
    updater = Updater(load_policy(str(folder), dtype, "cpu"), UpdateConfig(learning_rate=0.01), 0.7, 0)
    if dtype == "float16":
        updater.loss_scale = LossScale(factor)
    return updater


def gradient_of(updater: Updater, weights: Tensor | None = None) -> tuple[GradientStats, Tensor]:
    gradient = updater.compute_gradient(make_groups(), make_weights() if weights is None else weights)
    grads = [m.grad.flatten() for m in updater.master_weights.values() if m.grad is not None]
    return gradient, torch.cat(grads)


def count_passes(updater: Updater, monkeypatch: pytest.MonkeyPatch) -> list[LossScale | None]:
    """The scales of the passes to come."""
    scales: list[LossScale | None] = []
    compute = updater._gradient

    def counted(groups: Sequence[TrainableGroup], scale: LossScale | None) -> GradientStats:
        scales.append(scale)
        return compute(groups, scale)

    monkeypatch.setattr(updater, "_gradient", counted)
    return scales


def test_the_factor_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "UPDATES_TO_GROW", 3)
    scale = LossScale(8.0)
    assert scale.after_update() == LossScale(8.0, 1)
    assert scale.after_update().after_update() == LossScale(8.0, 2)
    assert scale.after_update().after_update().after_update() == LossScale(16.0, 0)
    assert LossScale(8.0, 2).after_overflow() == LossScale(4.0, 0)
    assert LossScale(1.0).after_overflow() is None
    assert LossScale(LARGEST, 2).after_update() == LossScale(LARGEST, 0)


def test_only_float16_has_a_scale(model_folder: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        updater = make_updater(model_folder, dtype)
        assert updater.loss_scale is None
        assert "loss_scale" not in updater.state_dict()
    assert make_updater(model_folder).loss_scale == LossScale(START)


def test_gradients_equal_those_of_float32(model_folder: Path) -> None:
    """11 bits: closer than bfloat16's 8. Master weights and their gradients are in float32."""
    expected, exact = gradient_of(make_updater(model_folder, "float32"))
    updater = make_updater(model_folder)
    gradient, found = gradient_of(updater)
    assert {m.dtype for m in updater.master_weights.values()} == {torch.float32}
    assert found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < 1e-2
    assert gradient.loss == pytest.approx(expected.loss, rel=1e-2)
    assert gradient.norm == pytest.approx(expected.norm, rel=1e-2)


def test_small_gradients_are_kept_by_the_scale_alone(model_folder: Path) -> None:
    small = make_weights() * 1e-7
    _, exact = gradient_of(make_updater(model_folder, "float32"), small)
    _, scaled = gradient_of(make_updater(model_folder, factor=2.0**20), small)
    _, unscaled = gradient_of(make_updater(model_folder, factor=1.0), small)
    assert (scaled - exact).norm() / exact.norm() < 1e-2
    assert (unscaled - exact).norm() / exact.norm() > 0.5


def test_an_overflow_is_computed_again_at_half_the_factor(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is not lost: its gradient is what a lower factor gives at once."""
    updater = make_updater(model_folder, factor=2.0**24)
    scales = count_passes(updater, monkeypatch)
    gradient, found = gradient_of(updater)
    assert gradient.is_finite
    assert len(scales) > 1
    assert scales == [LossScale(2.0 ** (24 - i)) for i in range(len(scales))]
    _, expected = gradient_of(make_updater(model_folder, factor=scales[-1].factor if scales[-1] else 0))
    assert torch.equal(found, expected)
    assert updater.loss_scale == LossScale(2.0**24)  # until the update
    assert updater.apply_gradient(gradient, 1)
    assert scales[-1] is not None
    assert updater.loss_scale == LossScale(scales[-1].factor, 1)


@pytest.mark.case(10)
def test_a_loss_that_is_not_finite_is_not_computed_again(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = make_updater(model_folder)
    next(iter(updater.params.values())).data[40, 0] = math.nan
    scales = count_passes(updater, monkeypatch)
    gradient = updater.compute_gradient(make_groups(), make_weights())
    assert len(scales) == 1
    assert not gradient.is_finite
    assert not updater.apply_gradient(gradient, 1)
    assert updater.loss_scale == LossScale(START)


@pytest.mark.case(10)
def test_a_gradient_that_is_never_finite_ends_at_factor_1(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = make_updater(model_folder, factor=4.0)
    monkeypatch.setattr(updater, "_gradient_norm", lambda: math.inf)
    scales = count_passes(updater, monkeypatch)
    gradient = updater.compute_gradient(make_groups(), make_weights())
    assert [scale and scale.factor for scale in scales] == [4.0, 2.0, 1.0]
    assert not updater.apply_gradient(gradient, 1)
    assert updater.loss_scale == LossScale(4.0)
    nothing = updater.compute_gradient(make_groups(), 0 * make_weights())
    assert (nothing.tokens, nothing.loss_scale) == (0, LossScale(4.0))


def test_the_scale_is_saved_loaded_and_restarted(model_folder: Path) -> None:
    updater = make_updater(model_folder)
    updater.loss_scale = LossScale(512.0, 7)
    state = {name: t.clone() for name, t in updater.state_dict().items()}
    other = make_updater(model_folder)
    other.load_state_dict(state)
    assert other.loss_scale == LossScale(512.0, 7)
    assert sum(t.nbytes for t in state.values()) <= updater.state_bytes
    other.restart_from(load_policy(str(model_folder), "float16", "cpu"))
    assert other.loss_scale == LossScale(START)


def test_an_adapter_over_a_float16_base(model_folder: Path) -> None:
    """Its own gradients are float32, and those of the activations scaled."""

    def gradient(dtype: str) -> Tensor:
        policy = load_policy(str(model_folder), dtype, "cpu", keep_float32=False)
        policy.add_adapter(AdapterConfig(rank=2), seed=0)
        updater = Updater(policy, UpdateConfig(), 0.7, 0)
        _, found = gradient_of(updater, make_weights() * 1e-5)
        assert found.dtype == torch.float32
        return found

    exact = gradient("float32")
    assert (gradient("float16") - exact).norm() / exact.norm() < 1e-2


@pytest.mark.parametrize("family", ["qwen3", "granite", "olmo2"])
def test_families_in_float16(family: str) -> None:
    def gradient(dtype: torch.dtype) -> Tensor:
        model: Any = make_family(family)
        for param in model.parameters():
            param.data = param.data.to(dtype)
        llama = Llama(model)
        policy = Policy(model, make_tokenizer(), frozenset({END}), family, llama=llama)
        return gradient_of(Updater(policy, UpdateConfig(), 0.7, 0))[1]

    exact = gradient(torch.float32)
    assert (gradient(torch.float16) - exact).norm() / exact.norm() < 2e-2
