"""Functions of elements and rows: on a CPU against float64, compiled and on an emulated card against the CPU."""

import logging
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from helpers.fake_cuda import FakeCuda
from reinforce_lite.models import elementwise
from reinforce_lite.models.elementwise import compile_for_card, merge, rms_norm, rotate, swiglu

TOKENS = 5


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


GATE, UP = normal(TOKENS, 6), normal(TOKENS, 6, seed=1)
X, GAIN = normal(TOKENS, 8), normal(8, seed=1)
HEADS = normal(TOKENS, 3 * 4)
"""Two heads of size 4, which are rotated, and one that is not."""
ANGLES = normal(TOKENS, 2, seed=1)
OUT, OTHER = normal(TOKENS, 2, 4), normal(TOKENS, 2, 4, seed=1)
LSE, OTHER_LSE = normal(TOKENS, 2, seed=2), normal(TOKENS, 2, seed=3)


def rotated() -> Any:
    """As products of complex numbers."""
    heads = HEADS.view(TOKENS, 3, 2, 2)
    turned = (
        torch.complex(heads[:, :2, 0], heads[:, :2, 1])
        * torch.polar(torch.ones_like(ANGLES), ANGLES)[:, None]
    )
    both = torch.stack([turned.real, turned.imag], dim=2)
    return torch.cat([both, heads[:, 2:]], dim=1).flatten(1)


JOBS: dict[str, tuple[Any, list[Any], Any]] = {
    "rms_norm": (rms_norm, [X, GAIN, 0.1], X / (X.square().mean(-1, keepdim=True) + 0.1).sqrt() * GAIN),
    "swiglu": (swiglu, [torch.cat([GATE, UP], 1)], GATE / (1 + (-GATE).exp()) * UP),
    "rotate": (rotate, [HEADS, ANGLES.cos().repeat(1, 2), ANGLES.sin().repeat(1, 2), 2, 4], rotated()),
    "merge": (
        merge,
        [OUT, LSE, OTHER, OTHER_LSE],
        (LSE.exp()[..., None] * OUT + OTHER_LSE.exp()[..., None] * OTHER)
        / (LSE.exp() + OTHER_LSE.exp())[..., None],
    ),
}


def copies(args: list[Any], *how: Any) -> list[Any]:
    return [x.clone().to(*how) if isinstance(x, Tensor) else x for x in args]


@pytest.mark.parametrize("name", JOBS)
def test_values_are_those_of_the_formula(name: str) -> None:
    job, args, expected = JOBS[name]
    torch.testing.assert_close(job(*copies(args)), expected)


@pytest.mark.parametrize("name", JOBS)
def test_a_card_launches_once(name: str) -> None:
    """And changes no argument: rotated heads may be needed as they were."""
    job, args, expected = JOBS[name]
    with FakeCuda() as card:
        on_card = copies(args, "cuda")
        before = copies(on_card)
        card.launches.clear()
        found = job(*on_card)
        assert card.launches.total() == 1
        torch.testing.assert_close(found.cpu(), expected)
        assert all(torch.equal(a, b) for a, b in zip(on_card, before, strict=True) if isinstance(a, Tensor))


@pytest.fixture
def fresh_cache() -> Any:
    compile_for_card.cache_clear()
    yield
    compile_for_card.cache_clear()


def test_without_a_compiler_a_function_runs_as_it_is(
    fresh_cache: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*args: Any) -> Any:
        raise RuntimeError("no C compiler\nand much more")

    monkeypatch.setattr(torch, "compile", lambda function: no_compiler)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = compile_for_card(elementwise._merge)(OUT, LSE, OTHER, OTHER_LSE)
            torch.testing.assert_close(found, JOBS["merge"][2])
    assert [r.message for r in caplog.records] == [
        "slower without compiled kernels: RuntimeError: no C compiler"
    ]


def test_running_out_of_memory_is_no_lack_of_a_compiler(
    fresh_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "compile", lambda function: no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        compile_for_card(elementwise._merge)(OUT, LSE, OTHER, OTHER_LSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "name"),
    [(elementwise._swiglu, "swiglu"), (elementwise._rotate_copy, "rotate"), (elementwise._merge, "merge")],
)
def test_compiled_functions_have_the_same_values(
    function: Any, name: str, fresh_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two numbers of tokens by one compiled function."""
    _, args, expected = JOBS[name]
    counter = CompileCounterWithBackend("inductor")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    run = compile_for_card(function)
    for n in (TOKENS, 3):
        found = run(*(x[:n].clone() if isinstance(x, Tensor) else x for x in args))
        torch.testing.assert_close(found, expected[:n])
    assert counter.frame_count == 1
