"""Attention over a tree by segments, as on a card, against that by blocks, and against float64."""

from typing import Any

import pytest
import torch

from helpers.fake_cuda import FakeCuda
from helpers.tiny import make_model
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.prefix_attention import PrefixAttention, _BlocksAttention, _SegmentsAttention
from reinforce_lite.models.prefix_tree import Branch, PrefixTree

CPU = torch.device("cpu")
COMPLETIONS = [[range(1 + 7 * j + i) for j in range(4)] if i != 1 else [] for i in range(3)]
"""Of three prompts: the first has a completion of one token, which has no state; the second has none."""
BRANCHES = [Branch(range(5 + i), completions) for i, completions in enumerate(COMPLETIONS)]


@pytest.fixture
def llama() -> Llama:
    return Llama(make_model())


def make_inputs(llama: Llama, tree: PrefixTree, prefix: int) -> tuple[list[Any], Any]:
    """Queries, keys and values, those of a prefix, and the gradient of the output, in float64."""
    torch.manual_seed(0)
    width = 2 * llama.kv_heads * llama.head_size
    shapes = [(len(tree.ids), llama.key_start + width), *([(prefix, width)] if prefix else [])]
    leaves = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    return leaves, torch.randn(len(tree.ids), llama.key_start, dtype=torch.float64)


def output_and_gradients(function: Any, leaves: list[Any], grad: Any, tree: PrefixTree, llama: Llama) -> Any:
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = function.apply(leaves[0], leaves[1] if leaves[1:] else None, tree, llama)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("prefix", [0, 9])
def test_segments_equal_blocks(prefix: int, dtype: torch.dtype, bound: float, llama: Llama) -> None:
    tree = PrefixTree(BRANCHES, prefix, CPU)
    leaves, grad = make_inputs(llama, tree, prefix)
    inputs = [x.to(dtype) for x in leaves], grad.to(dtype), tree, llama
    expected = output_and_gradients(_BlocksAttention, *inputs)
    found = output_and_gradients(_SegmentsAttention, *inputs)
    assert all((a - b).norm() < bound * b.norm() for a, b in zip(found, expected, strict=True))


def test_prompts_alone(llama: Llama) -> None:
    tree = PrefixTree([Branch(range(4)), Branch(range(1))], 0, CPU)
    inputs = *make_inputs(llama, tree, 0), tree, llama
    pairs = zip(
        *(output_and_gradients(f, *inputs) for f in (_SegmentsAttention, _BlocksAttention)), strict=True
    )
    assert all(torch.allclose(a, b) for a, b in pairs)


def by_kind(results: list[Any], llama: Llama) -> list[Any]:
    """The output, the gradients of queries and of keys and values, and those of the prefix, in float64."""
    split = [results[0], *torch.tensor_split(results[1], [llama.key_start], dim=1), *results[2:]]
    return [x.cpu().double() for x in split]


@pytest.mark.parametrize("prefix", [0, 9])
def test_large_key_biases_on_a_card(prefix: int, llama: Llama) -> None:
    """In bfloat16, against float64. As in Qwen2.5: scores beyond 1,000, which bfloat16 would round by up to 8.

    What is common to all keys amplifies the rounding of the output in the queries' gradient: there the bound is
    the error of the CPU's kernel.
    """
    tree = PrefixTree(BRANCHES, prefix, CPU)
    leaves, grad = make_inputs(llama, tree, prefix)
    queries = leaves[0][:, : llama.key_start].view(len(tree.ids), -1, llama.head_size)
    queries[..., :2] += torch.tensor([30.0, -30.0])
    for x, start in zip(leaves, (llama.key_start, 0), strict=False):
        keys = x[:, start:].view(len(x), 2, llama.kv_heads, llama.head_size)[:, 0]
        keys[..., :2] += torch.tensor([100.0, -100.0])
    leaves, grad = [x.bfloat16() for x in leaves], grad.bfloat16()
    exact = output_and_gradients(_BlocksAttention, [x.double() for x in leaves], grad.double(), tree, llama)
    on_cpu = output_and_gradients(_BlocksAttention, leaves, grad, tree, llama)
    with FakeCuda() as card:
        on_card = PrefixTree(BRANCHES, prefix, torch.device("cuda"))
        inputs = [x.to("cuda") for x in leaves], grad.to("cuda")
        found = by_kind(output_and_gradients(_SegmentsAttention, *inputs, on_card, llama), llama)
        assert card.launches["_flash_attention_backward"] == (3 if prefix else 2)
    exact, on_cpu = by_kind(exact, llama), by_kind(on_cpu, llama)
    errors, cpu_errors = (
        [float((a - b).norm() / b.norm()) for a, b in zip(results, exact, strict=True)]
        for results in (found, on_cpu)
    )
    assert errors[0] < 0.002
    assert errors[1] < 1.2 * cpu_errors[1]
    assert max(errors[2:]) < 0.01


def launches_and_waits(function: Any, llama: Llama) -> tuple[int, int]:
    """Of one layer's attention in an update of 160 completions, forward and backward."""
    with FakeCuda() as card:
        branches = [Branch(range(8 + i % 7), [range(12 + j) for j in range(10)]) for i in range(16)]
        tree = PrefixTree(branches, 0, torch.device("cuda"))
        leaves, grad = make_inputs(llama, tree, 0)
        inputs = [x.bfloat16().to("cuda") for x in leaves], grad.bfloat16().to("cuda")
        card.launches.clear()
        card.waits.clear()
        output_and_gradients(function, *inputs, tree, llama)
        return card.launches.total(), card.waits.total()


def test_launches_of_an_update(llama: Llama) -> None:
    """By blocks it takes 954 launches and 8 waits, by segments 13 and none."""
    blocks, _ = launches_and_waits(_BlocksAttention, llama)
    launches, waits = launches_and_waits(_SegmentsAttention, llama)
    assert waits == 0
    assert launches < blocks / 50


def test_a_card_attends_by_segments(llama: Llama) -> None:
    with FakeCuda() as card:
        tree = PrefixTree(BRANCHES, 0, torch.device("cuda"))
        qkv = make_inputs(llama, tree, 0)[0][0].bfloat16().to("cuda")
        PrefixAttention(llama, tree)(0, qkv)
        assert card.launches["_flash_attention_forward"] == 2
