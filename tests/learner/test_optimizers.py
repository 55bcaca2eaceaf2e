"""AdamW in 8 and 16 bits against torch's, and what stochastic rounding does on average."""

from collections import Counter
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from helpers.fake_cuda import FakeCuda
from reinforce_lite.config import UpdateConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.learner import optimizers
from reinforce_lite.learner.optimizers import make_optimizer

EIGHT = UpdateConfig(optimizer_state="8-bit", betas=(0.9, 0.999))


def weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """A large tensor of 9,472 = 37 blocks, one that is too small, and one that is not of whole blocks."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"large": (74, 128), "gain": (128,), "odd": (5000,)}
    return {
        name: torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def set_gradients(params: dict[str, Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for w in params.values():
        w.grad = torch.randn(w.shape, generator=generator).to(w.dtype)


def run(
    params: dict[str, Tensor],
    optimizer: optimizers.AdamW | optimizers.AdamW8bit,
    steps: range,
    learning_rate: float = 1e-3,
) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step(learning_rate, seed=step)


def test_8_bit_moments_follow_32_bit_closely() -> None:
    """Five steps of float32 weights: only the moments of large tensors are coarser."""
    ours, reference, start = weights(), weights(), weights()
    run(ours, make_optimizer(EIGHT, ours), range(5))
    adamw = torch.optim.AdamW(list(reference.values()), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    for step in range(5):
        set_gradients(reference, step)
        adamw.step()
    change = {name: reference[name] - start[name] for name in start}
    error = {name: (ours[name] - reference[name]).norm() / change[name].norm() for name in start}
    assert 0 < error["large"] < 0.05
    assert error["gain"] < 1e-4
    assert error["odd"] < 1e-4


def test_stochastic_rounding_is_right_on_average() -> None:
    """Adam's first step equals the learning rate: 1e-4 down from 1, where the next bfloat16 is 2^-8 less. So
    256 x 1e-4 = 2.56% of the weights change, by 2^-8."""
    params = {"w": torch.ones(2**16, dtype=torch.bfloat16, requires_grad=True)}
    params["w"].grad = torch.ones_like(params["w"])
    make_optimizer(EIGHT, params).step(1e-4, seed=3)
    w = params["w"].detach().float()
    assert set(w.tolist()) == {1.0, 1 - 2**-8}
    assert (w < 1).float().mean().item() == pytest.approx(0.0256, abs=4 * (0.0256 * 0.9744 / 2**16) ** 0.5)


def test_16_bit_loses_what_8_bit_keeps() -> None:
    params = {"w": torch.ones(2**16, dtype=torch.bfloat16, requires_grad=True)}
    params["w"].grad = torch.ones_like(params["w"])
    optimizer = make_optimizer(UpdateConfig(optimizer_state="16-bit"), params)
    optimizer.step(1e-4, seed=3)
    assert (params["w"] == 1).all()
    assert {t.dtype for name, t in optimizer.state_dict().items() if name != "step/w"} == {torch.bfloat16}


def test_small_updates_of_small_tensors_add_up() -> None:
    """A bfloat16 weight of 1 can't represent a step of 1e-4. Its float32 master weight accumulates 40 of them,
    and 1 - 0.004 is rounded to the nearest bfloat16, 1 - 2^-8."""
    params = {"gain": torch.ones(64, dtype=torch.bfloat16, requires_grad=True)}
    optimizer = make_optimizer(EIGHT, params)
    for step in range(40):
        params["gain"].grad = torch.ones_like(params["gain"])
        optimizer.step(1e-4, seed=step)
        assert step >= 15 or (params["gain"] == 1).all()
    assert (params["gain"] == 1 - 2**-8).all()


def test_seed_determines_stochastic_rounding() -> None:
    def moved(seed: int) -> Tensor:
        params = weights(torch.bfloat16)
        set_gradients(params, 0)
        make_optimizer(EIGHT, params).step(1e-4, seed)
        return params["large"].detach()

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = moved(1)
    assert torch.equal(torch.rand(3), expected)  # the global stream is not advanced
    assert torch.equal(moved(1), first)
    assert not torch.equal(moved(2), first)


@pytest.mark.parametrize("state", ["8-bit", "16-bit", "32-bit"])
def test_state_dict_round_trip_continues_bit_for_bit(state: Any) -> None:
    config = UpdateConfig(optimizer_state=state)
    straight = weights(torch.bfloat16)
    run(straight, make_optimizer(config, straight), range(4), 1e-2)
    first = weights(torch.bfloat16)
    before = make_optimizer(config, first)
    assert all(name.startswith("master/") for name in before.state_dict())
    run(first, before, range(2), 1e-2)
    saved = {name: t.clone() for name, t in before.state_dict().items()}
    second = {name: w.detach().clone().requires_grad_() for name, w in first.items()}
    run(first, before, range(2, 3), 1.0)  # the saved tensors must not be those that change
    after = make_optimizer(config, second)
    after.load_state_dict(saved)
    run(second, after, range(2, 4), 1e-2)
    assert all(torch.equal(second[name], straight[name]) for name in straight)


def test_piece_size_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales are per block, and pieces are whole blocks."""
    uncut = weights()
    run(uncut, make_optimizer(EIGHT, uncut), range(3))
    monkeypatch.setattr(optimizers, "PIECE", 5120)
    assert optimizers.piece_sizes(9472) == [4608, 4864]
    cut = weights()
    run(cut, make_optimizer(EIGHT, cut), range(3))
    assert all(torch.equal(cut[name], uncut[name]) for name in uncut)


@pytest.mark.parametrize("elements", [4096, 2**22, 2**22 + 256, 311_164_928, 49_152 * 576])
def test_pieces_are_whole_blocks_and_none_is_small(elements: int) -> None:
    sizes = optimizers.piece_sizes(elements)
    assert sum(sizes) == elements
    assert all(optimizers.SMALL <= n <= optimizers.PIECE and n % 256 == 0 for n in sizes)


def test_step_at_learning_rate_0_changes_no_weight() -> None:
    """With gradients of 0; and a new optimizer knows nothing of it."""
    for config, dtype in (
        (UpdateConfig(optimizer_state="8-bit", weight_decay=0.1), torch.bfloat16),
        (UpdateConfig(optimizer_state="32-bit", weight_decay=0.1), torch.float32),
    ):
        params, plain = weights(dtype), weights(dtype)
        for w in params.values():
            w.grad = torch.zeros_like(w)
        make_optimizer(config, params).step(0.0, 0)
        assert all(torch.equal(params[name], plain[name]) for name in params)
        run(params, make_optimizer(config, params), range(2))
        run(plain, make_optimizer(config, plain), range(2))
        assert all(torch.equal(params[name], plain[name]) for name in params)


def test_weight_without_gradient_stays() -> None:
    params = weights(torch.bfloat16)
    set_gradients(params, 0)
    params["large"].grad = params["gain"].grad = None
    make_optimizer(EIGHT, params).step(1e-2, 0)
    start = weights(torch.bfloat16)
    assert {name: torch.equal(params[name], start[name]) for name in params} == {
        "large": True,
        "gain": True,
        "odd": False,
    }


def run_on_card(
    compiled: bool, dtype: torch.dtype, steps: int, config: UpdateConfig = EIGHT
) -> tuple[dict[str, Tensor], dict[str, Tensor], Counter[str], Counter[str]]:
    """The weights and the optimizer's state after some steps; launches and waits of the last one."""
    with FakeCuda() as card, pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "_can_compile_update", lambda *_: compiled)
        params = {name: w.detach().to("cuda").requires_grad_() for name, w in weights(dtype).items()}
        optimizer = make_optimizer(config, params)
        for step in range(steps):
            set_gradients(params, step)
            for w in params.values():
                assert w.grad is not None
                w.grad = w.grad.to("cuda")
            card.launches.clear()
            card.waits.clear()
            optimizer.step(1e-3, seed=step)
        launches, waits = card.launches.copy(), card.waits.copy()
        state = {name: t.cpu().clone() for name, t in optimizer.state_dict().items()}
        return {name: w.detach().cpu() for name, w in params.items()}, state, launches, waits


@pytest.mark.parametrize("compiled", [True, False])
def test_8_bit_moments_on_a_card_follow_the_cpus(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32; and the state has the same names, of pieces, so that either continues from the other's."""
    monkeypatch.setattr(optimizers, "PIECE", 5120)
    expected, start = weights(), weights()
    optimizer = make_optimizer(EIGHT, expected)
    run(expected, optimizer, range(3))
    found, state, *_ = run_on_card(compiled, torch.float32, 3)
    for name, w in expected.items():
        assert (found[name] - w).norm() < 1e-4 * (w - start[name]).norm()
    assert {name: t.shape for name, t in state.items()} == {
        name: t.shape for name, t in optimizer.state_dict().items()
    }
    after = make_optimizer(EIGHT, {name: w.clone().requires_grad_() for name, w in found.items()})
    after.load_state_dict(state)
    assert all(torch.equal(t, state[name]) for name, t in after.state_dict().items())
    assert all(
        torch.allclose(t.float(), state[name].float(), rtol=1e-4, atol=1)
        for name, t in optimizer.state_dict().items()
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_offloaded_moments_change_no_result(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where nothing is random: 9,472 elements pass through the card in parts of 16 blocks."""
    monkeypatch.setattr(optimizers, "OFFLOADED_BLOCKS", 16)
    offloaded = EIGHT.model_copy(update={"offload_optimizer": True})
    expected, state, *_ = run_on_card(compiled, torch.float32, 3)
    found, state_found, *_ = run_on_card(compiled, torch.float32, 3, offloaded)
    assert all(torch.equal(found[name], w) for name, w in expected.items())
    assert state_found.keys() == state.keys()
    assert all(torch.equal(state_found[name], t) for name, t in state.items())


def test_offloaded_moments_are_not_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """They pass through it in parts of 16 blocks, 37 in three, and the host waits once for the last."""
    monkeypatch.setattr(optimizers, "OFFLOADED_BLOCKS", 16)
    offloaded = EIGHT.model_copy(update={"offload_optimizer": True})
    with FakeCuda():
        params = {"large": weights(torch.bfloat16)["large"].detach().to("cuda").requires_grad_()}
        optimizer = make_optimizer(offloaded, params)
        params["large"].grad = torch.ones_like(params["large"])
        optimizer.step(1e-3, seed=0)
        moments = [t for name, t in optimizer.state_dict().items() if name.startswith("exp_avg")]
        assert len(moments) == 2 * 2  # codes and scales of both
        assert not any(t.is_cuda for t in moments)
    *_, launches, _ = run_on_card(True, torch.bfloat16, 2, offloaded)
    assert launches["_update_blocks"] == 3


def test_launches_of_a_step_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for a large weight, however many pieces it has, and some for all small ones; and the host never waits."""
    monkeypatch.setattr(optimizers, "PIECE", 4096)
    *_, launches, waits = run_on_card(True, torch.bfloat16, 2)
    assert launches["_update_blocks"] == 1
    assert launches.total() < 20
    assert not waits


def test_stochastic_rounding_on_a_card_is_right_on_average() -> None:
    """As `test_stochastic_rounding_is_right_on_average`."""
    weight, grad = (torch.ones(2**8, 256, dtype=torch.bfloat16) for _ in range(2))
    codes, scales = torch.zeros(2**8, 256, dtype=torch.uint8), torch.zeros(2**8)
    tables = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)
    torch.manual_seed(0)
    factors = torch.tensor([1.0, 1e-3, 0.001**0.5])  # of step 1, at a learning rate of 1e-4
    optimizers._update_blocks(
        weight, grad, codes, scales, codes.clone(), scales.clone(), *tables, factors, 0.9, 0.999
    )
    assert set(weight.flatten().tolist()) == {1.0, 1 - 2**-8}
    assert (weight < 1).float().mean().item() == pytest.approx(
        0.0256, abs=4 * (0.0256 * 0.9744 / 2**16) ** 0.5
    )


@pytest.mark.slow
def test_the_compiled_update_has_the_same_values() -> None:
    """For two sizes by one compiled function, in float32, where nothing is random."""
    counter, plain = CompileCounterWithBackend("inductor"), cast(Any, optimizers._update_blocks)
    compiled: Any = torch.compile(optimizers._update_blocks, backend=counter)
    for blocks in (8, 5):
        generator = torch.Generator().manual_seed(blocks)
        weight, grad = (torch.randn(blocks, 256, generator=generator) for _ in range(2))
        codes = torch.randint(256, (2, blocks, 256), generator=generator).byte()
        scales = torch.rand(2, blocks, generator=generator)
        tables = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)
        args = weight, grad, codes[0], scales[0], codes[1], scales[1], *tables, torch.tensor([0.99, 0.1, 0.5])
        expected, found = ([t.clone() for t in args] for _ in range(2))
        plain(*expected, 0.9, 0.999)
        for t in (*found[:4], *found[4:6]):
            torch._dynamo.maybe_mark_dynamic(t, 0)
        compiled(*found, 0.9, 0.999)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(
                a.float(), b.float(), rtol=1e-5, atol=1.0 if a.dtype == torch.uint8 else 1e-5
            )
    assert counter.frame_count == 1


def test_missing_torchao_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"update\.optimizer_state = 8-bit needs") as caught:
        make_optimizer(EIGHT, weights())
    assert "reinforce-lite[8bit]" in caught.value.remedy
