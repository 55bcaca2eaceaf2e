"""AdamW in 8 and 16 bits against torch's, and what rounding at random does on average."""

from typing import Any

import pytest
import torch
from torch import Tensor

from reinforce_lite.config import UpdateConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.learner import optimizers
from reinforce_lite.learner.optimizers import make_optimizer

EIGHT = UpdateConfig(optimizer_state="8-bit", betas=(0.9, 0.999))


def weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """A large tensor of 9,472 = 37 blocks, and two that are too small or not of whole blocks."""
    source = torch.Generator().manual_seed(seed)
    shapes = {"large": (74, 128), "gain": (128,), "odd": (5000,)}
    return {
        name: torch.randn(shape, generator=source).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def give_gradients(held: dict[str, Tensor], step: int) -> None:
    source = torch.Generator().manual_seed(100 + step)
    for w in held.values():
        w.grad = torch.randn(w.shape, generator=source).to(w.dtype)


def run(held: dict[str, Tensor], optimizer: optimizers.Optimizer, steps: range, rate: float = 1e-3) -> None:
    for step in steps:
        give_gradients(held, step)
        optimizer.step(rate, seed=step)


def test_8_bits_follow_32_bits_closely() -> None:
    """Five steps of float32 weights; only the moments are coarser. What is small is not coarser at all."""
    ours, reference, start = weights(), weights(), weights()
    run(ours, make_optimizer(EIGHT, ours), range(5))
    adamw = torch.optim.AdamW(list(reference.values()), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    for step in range(5):
        give_gradients(reference, step)
        adamw.step()
    moved = {name: reference[name] - start[name] for name in start}
    error = {name: (ours[name] - reference[name]).norm() / moved[name].norm() for name in start}
    assert 0 < error["large"] < 0.05
    assert error["gain"] < 1e-4
    assert error["odd"] < 1e-4


def test_rounding_at_random_is_right_on_average() -> None:
    """Adam's first step is the rate itself: 1e-4 from 1, where the next smaller bfloat16 is 2^-8 less. So
    256 x 1e-4 = 2.56% of the weights move, by all of it."""
    held = {"w": torch.ones(2**16, dtype=torch.bfloat16, requires_grad=True)}
    held["w"].grad = torch.ones_like(held["w"])
    make_optimizer(EIGHT, held).step(1e-4, seed=3)
    w = held["w"].detach().float()
    assert set(w.tolist()) == {1.0, 1 - 2**-8}
    assert (w < 1).float().mean().item() == pytest.approx(0.0256, abs=4 * (0.0256 * 0.9744 / 2**16) ** 0.5)


def test_16_bits_lose_what_8_bits_keep() -> None:
    held = {"w": torch.ones(2**16, dtype=torch.bfloat16, requires_grad=True)}
    held["w"].grad = torch.ones_like(held["w"])
    optimizer = make_optimizer(UpdateConfig(optimizer_state="16-bit"), held)
    optimizer.step(1e-4, seed=3)
    assert (held["w"] == 1).all()
    assert {t.dtype for name, t in optimizer.state_dict().items() if name != "step/w"} == {torch.bfloat16}


def test_small_updates_of_gains_add_up() -> None:
    """A bfloat16 gain of 1 can't show a step of 1e-4; its float32 copy adds up 40 of them, and 1 - 0.004 is
    shown as the nearest bfloat16, 1 - 2^-8."""
    held = {"gain": torch.ones(64, dtype=torch.bfloat16, requires_grad=True)}
    optimizer = make_optimizer(EIGHT, held)
    for step in range(40):
        held["gain"].grad = torch.ones_like(held["gain"])
        optimizer.step(1e-4, seed=step)
        assert step >= 15 or (held["gain"] == 1).all()
    assert (held["gain"] == 1 - 2**-8).all()


def test_the_seed_alone_decides_the_rounding() -> None:
    def moved(seed: int) -> Tensor:
        held = weights(torch.bfloat16)
        give_gradients(held, 0)
        make_optimizer(EIGHT, held).step(1e-4, seed)
        return held["large"].detach()

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = moved(1)
    assert torch.equal(torch.rand(3), expected)  # nobody else's draws change
    assert torch.equal(moved(1), first)
    assert not torch.equal(moved(2), first)


@pytest.mark.parametrize("state", ["8-bit", "16-bit", "32-bit"])
def test_saved_and_loaded_it_goes_on_bit_for_bit(state: Any) -> None:
    section = UpdateConfig(optimizer_state=state)
    straight = weights(torch.bfloat16)
    run(straight, make_optimizer(section, straight), range(4), 1e-2)
    first = weights(torch.bfloat16)
    before = make_optimizer(section, first)
    assert all(name.startswith("finer/") for name in before.state_dict())
    run(first, before, range(2), 1e-2)
    kept = {name: t.clone() for name, t in before.state_dict().items()}
    second = {name: w.detach().clone().requires_grad_() for name, w in first.items()}
    run(first, before, range(2, 3), 1.0)  # what was kept must not be what goes on
    after = make_optimizer(section, second)
    after.load_state_dict(kept)
    run(second, after, range(2, 4), 1e-2)
    assert all(torch.equal(second[name], straight[name]) for name in straight)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale is for one block, and no piece cuts one."""
    whole = weights()
    run(whole, make_optimizer(EIGHT, whole), range(3))
    monkeypatch.setattr(optimizers, "PIECE", 5120)
    assert optimizers.piece_sizes(9472) == [4608, 4864]
    cut = weights()
    run(cut, make_optimizer(EIGHT, cut), range(3))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


@pytest.mark.parametrize("numbers", [4096, 2**22, 2**22 + 256, 311_164_928, 49_152 * 576])
def test_pieces_are_whole_blocks_and_none_is_small(numbers: int) -> None:
    sizes = optimizers.piece_sizes(numbers)
    assert sum(sizes) == numbers
    assert all(optimizers.SMALL <= n <= optimizers.PIECE and n % 256 == 0 for n in sizes)


def test_forgotten_it_starts_anew() -> None:
    """A rehearsal at a rate of 0 with gradients of 0 moves nothing and leaves nothing."""
    for state, dtype in (("8-bit", torch.bfloat16), ("32-bit", torch.float32)):
        section = UpdateConfig(optimizer_state=state, weight_decay=0.1)  # type: ignore[arg-type]
        held, plain = weights(dtype), weights(dtype)
        optimizer = make_optimizer(section, held)
        for w in held.values():
            w.grad = torch.zeros_like(w)
        optimizer.step(0.0, 0)
        assert all(torch.equal(held[name], plain[name]) for name in held)
        optimizer.reset()
        run(held, optimizer, range(2))
        run(plain, make_optimizer(section, plain), range(2))
        assert all(torch.equal(held[name], plain[name]) for name in held)


def test_a_weight_without_a_gradient_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    held = weights(torch.bfloat16)
    give_gradients(held, 0)
    held["large"].grad = held["gain"].grad = None
    make_optimizer(EIGHT, held).step(1e-2, 0)
    start = weights(torch.bfloat16)
    assert {name: torch.equal(held[name], start[name]) for name in held} == {
        "large": True,
        "gain": True,
        "odd": False,
    }


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"update\.optimizer_state = 8-bit needs") as caught:
        make_optimizer(EIGHT, weights())
    assert caught.value.remedy == 'install it with: pip install "reinforce-lite[8bit]"'
