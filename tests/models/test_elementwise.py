"""Functions of elements and rows: on a CPU against float64, compiled and on an emulated card against the CPU."""

import logging
from functools import partial
from operator import itemgetter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_map

from helpers.fake_cuda import FakeCuda
from reinforce_lite.models import elementwise, logprobs
from reinforce_lite.models.elementwise import (
    compile_for_card,
    merge,
    rms_norm,
    rms_norm_and_inverse,
    rms_norm_backward,
    rotate,
    swiglu,
    swiglu_backward,
)
from reinforce_lite.models.llama_families import SILU

TOKENS = 5


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


GATE, UP = normal(TOKENS, 6), normal(TOKENS, 6, seed=1)
D = normal(TOKENS, 6, seed=2)
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


def swiglu_gradient() -> Any:
    """By autograd; and the value."""
    gate_up = torch.cat([GATE, UP], 1).requires_grad_()
    value = torch.sigmoid(gate_up[:, :6]) * gate_up[:, :6] * gate_up[:, 6:]
    return torch.autograd.grad(value, gate_up, D)[0], value.detach()


JOBS: dict[str, tuple[Any, list[Any], Any]] = {
    "rms_norm": (rms_norm, [X, GAIN, 0.1], X / (X.square().mean(-1, keepdim=True) + 0.1).sqrt() * GAIN),
    "swiglu": (swiglu, [torch.cat([GATE, UP], 1), SILU], GATE / (1 + (-GATE).exp()) * UP),
    "swiglu_backward": (swiglu_backward, [D, torch.cat([GATE, UP], 1), SILU], swiglu_gradient()),
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
        with torch.no_grad():
            found = job(*on_card)
        assert card.launches.total() == 1
        torch.testing.assert_close(tree_map(Tensor.cpu, found), expected)
        assert all(torch.equal(a, b) for a, b in zip(on_card, before, strict=True) if isinstance(a, Tensor))


def test_gradients_of_rms_norm_on_a_card() -> None:
    leaves = [X.clone().requires_grad_(), GAIN.clone().requires_grad_()]
    grad = normal(TOKENS, 8, seed=3)
    torch.autograd.backward(torch.nn.functional.rms_norm(leaves[0], (8,), leaves[1], 0.1), grad)
    with FakeCuda() as card:
        x, gain, d = (t.to("cuda") for t in (X, GAIN, grad))
        _, inverse = rms_norm_and_inverse(x, gain, 0.1)
        card.launches.clear()
        found = rms_norm_backward(d, x, inverse, gain, needs_gain=True)
        assert card.launches.total() == 1
        torch.testing.assert_close(tree_map(Tensor.cpu, found), tuple(leaf.grad for leaf in leaves))
        assert rms_norm_backward(d, x, inverse, gain, needs_gain=False)[1] is None


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


TRITON_OOM = RuntimeError("Triton Error [CUDA]: out of memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), TRITON_OOM])
def test_running_out_of_memory_is_no_lack_of_a_compiler(
    fresh_cache: None, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def no_memory(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "compile", lambda function: no_memory)
    with pytest.raises(type(error)):
        compile_for_card(elementwise._merge)(OUT, LSE, OTHER, OTHER_LSE)
    assert compile_for_card(elementwise._merge).is_compiled


TOKEN_IDS = torch.tensor([3, 0, 5, 3, 1])
SCALED_LOGITS = GATE / 0.7
LOGPROBS = SCALED_LOGITS.log_softmax(1)
CHOSEN = torch.nn.functional.one_hot(TOKEN_IDS, 6)
COMPILED: dict[Any, tuple[list[Any], Any]] = {
    elementwise._swiglu: ([torch.cat([GATE, UP], 1), SILU.forward], JOBS["swiglu"][2]),
    elementwise._swiglu_backward: (
        [D, torch.cat([GATE, UP], 1), SILU.forward, SILU.backward],
        JOBS["swiglu_backward"][2],
    ),
    elementwise._rotate_copy: JOBS["rotate"][1:],
    elementwise._merge: JOBS["merge"][1:],
    logprobs._logprobs_and_normalizer: (
        [GATE, TOKEN_IDS, 0.7],
        ((LOGPROBS * CHOSEN).sum(1), SCALED_LOGITS.logsumexp(1)),
    ),
    logprobs._logits_gradient: (
        [GATE, TOKEN_IDS, SCALED_LOGITS.logsumexp(1), D[:, 0], 0.7],
        (CHOSEN - LOGPROBS.exp()) * D[:, :1],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("function", COMPILED)
def test_compiled_functions_have_the_same_values(
    function: Any, fresh_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two numbers of tokens by one compiled function."""
    args, expected = COMPILED[function]
    counter = CompileCounterWithBackend("inductor")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    run = compile_for_card(function)
    for n in (TOKENS, 3):
        found = run(*(x[:n].clone() if isinstance(x, Tensor) else x for x in args))
        torch.testing.assert_close(found, tree_map(itemgetter(slice(n)), expected))
    assert counter.frame_count == 1
