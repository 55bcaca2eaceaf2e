"""The estimated parts of a run's memory against the tensors that the code allocates."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from helpers.groups import make_groups, make_weights
from helpers.model_configs import make_family
from helpers.tiny import make_model, make_tokenizer
from reinforce_lite.config import (
    AdapterConfig,
    Config,
    EvalConfig,
    ObjectiveConfig,
    PresetName,
    PromptConfig,
    RolloutConfig,
    TrainConfig,
    UpdateConfig,
)
from reinforce_lite.engines import cache_size, scheduler
from reinforce_lite.engines.kv_cache import KVCache
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.embedded import EMBEDDED_NAME
from reinforce_lite.models.forward import FullSequenceForward
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, PrefixTree
from reinforce_lite.planner import model_shape
from reinforce_lite.planner.estimate import (
    PHASES,
    ROLLOUT,
    activation_bytes_per_token,
    host_bytes,
    max_step_tokens,
    memory_parts,
)
from reinforce_lite.planner.model_shape import read_shape, shape_of
from reinforce_lite.planner.schemes import SCHEMES, Target
from reinforce_lite.types import Prompt, Sampling

KEPT = [
    ("native", 32 * 529_920, PHASES),
    ("native", 32 * 529_920 - 32, (ROLLOUT,)),
    ("hf", 32 * 529_920, (ROLLOUT,)),
]


def bytes_of(tensors: Any) -> int:
    return sum(t.nbytes for t in tensors)


def part_sizes(model: str, dtype: str, longest: int, **sections: Any) -> dict[str, int]:
    """Bytes by part of a recipe with these sections, on a CPU."""
    shape = read_shape(model, False, longest)
    parts = memory_parts(Config(**sections), shape, Target("cpu", getattr(torch, dtype), None))
    return {part.name: part.bytes for part in parts}


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dtype", "state"), SCHEMES)
def test_training_state_is_what_the_updater_holds(
    tmp_path: Path, saved: torch.dtype, dtype: str, state: Literal["32-bit", "16-bit", "8-bit"]
) -> None:
    """Whatever dtype the model's folder has: weights finer than bfloat16 become the master weights."""
    make_model(hidden_size=64, vocab_size=320, head_dim=32).to(saved).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), dtype, "cpu", keep_float32=state == "32-bit")
    updater = Updater(policy, UpdateConfig(optimizer_state=state), 0.7, 0)
    updater.compute_gradient(make_groups(), make_weights())
    gradients = bytes_of(w.grad for w in updater.master_weights.values())
    assert dtype == "float32" or state != "32-bit" or all(p.grad is None for p in policy.model.parameters())
    assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
    assert all(w.grad is None for w in (*updater.master_weights.values(), *updater.params.values()))
    has_master_weights = updater.master_weights is not updater.params
    allocated = {
        "weights": bytes_of(policy.model.parameters()),
        "gradients": gradients,
        "optimizer state": moment_bytes(updater.optimizer),
        "master weights": bytes_of(updater.master_weights.values())
        if has_master_weights
        else copy_bytes(updater.optimizer),
    }
    parts = part_sizes(str(tmp_path), dtype, 64, update=UpdateConfig(optimizer_state=state))
    assert allocated == {name: parts[name] for name in allocated}


def moment_bytes(optimizer: Any) -> int:
    """Every tensor of the optimizer's state; of a quantized moment its codes, scales and table."""
    pieces = getattr(optimizer, "pieces", None)
    states = [p.state for p in pieces] if pieces else optimizer.optimizer.state.values()
    tensors = [t for values in states for t in values.values()]
    assert not pieces or any(hasattr(t, "codes") for t in tensors)
    return sum(bytes_of([t.codes, t.scale, t.qmap]) if hasattr(t, "codes") else t.nbytes for t in tensors)


def copy_bytes(optimizer: Any) -> int:
    return bytes_of(p.elements for p in getattr(optimizer, "pieces", ()) if p.is_master)


@pytest.mark.parametrize("cache_bytes", [768 * 10**6, 40_000])
@pytest.mark.parametrize("samples", [1, 3, 5])
def test_kv_cache_is_what_the_native_engine_allocates(
    policy: Policy, model_folder: Path, monkeypatch: pytest.MonkeyPatch, cache_bytes: int, samples: int
) -> None:
    caches: list[KVCache] = []

    class RecordedCache(KVCache):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            caches.append(self)

    monkeypatch.setattr(scheduler, "KVCache", RecordedCache)
    monkeypatch.setattr(cache_size, "CACHE_BYTES", cache_bytes)
    prompts = [Prompt((10 + i, *range(40, 40 + 8 - i))) for i in range(4)]  # of 9 tokens and fewer
    sampling = Sampling(samples=samples, max_new_tokens=7)
    NativeEngine(policy).generate(prompts, sampling, seed=0)
    parts = part_sizes(
        str(model_folder),
        "float32",
        64,
        prompt=PromptConfig(max_tokens=9),
        rollout=RolloutConfig(prompts_per_step=4, group_size=samples, max_new_tokens=7),
        eval=EvalConfig(n=1, validation_n=1),
    )
    assert parts["KV cache"] == caches[0].prompts.nbytes + caches[0].sequences.nbytes


def test_kv_cache_of_the_hf_engine_by_hand() -> None:
    """Batches of 128 // 10 = 12 prompts, each with 10 sequences of 9 + 7 tokens, all with their prompt; or of a
    part of one prompt's sequences, where no more are decoded at a time.

    A token has a key and a value in 30 layers and 3 heads of 64 numbers of 4 bytes.
    """
    for prompts, most, sequences in ((50, 256, 120), (3, 256, 30), (3, 4, 4)):
        rollout = RolloutConfig(engine="hf", prompts_per_step=prompts, group_size=10, max_new_tokens=7)
        parts = part_sizes(
            EMBEDDED_NAME,
            "float32",
            64,
            prompt=PromptConfig(max_tokens=9),
            rollout=rollout.model_copy(update={"max_num_seqs": most}),
            eval=EvalConfig(n=1, validation_n=1),
        )
        assert parts["KV cache"] == sequences * 16 * (2 * 30 * 3 * 64 * 4)


@pytest.mark.parametrize(("engine", "gpu_bytes", "phases"), KEPT)
def test_a_small_kv_cache_of_a_card_is_held_in_the_update_too(
    engine: Literal["native", "hf"], gpu_bytes: int, phases: tuple[str, ...]
) -> None:
    """Of 2 sequences with 7 tokens each and a prompt of 9: (14 + 9) * 23,040 bytes, which is 529,920."""
    config = Config(
        prompt=PromptConfig(max_tokens=9),
        rollout=RolloutConfig(engine=engine, prompts_per_step=1, group_size=2, max_new_tokens=7),
        eval=EvalConfig(n=1, validation_n=1),
    )
    shape = read_shape(EMBEDDED_NAME, False, 64)
    parts = memory_parts(config, shape, Target("cuda", torch.bfloat16, gpu_bytes))
    assert [part.phases for part in parts if part.name.startswith("KV cache")] == [phases]


@pytest.mark.parametrize(
    ("device", "copy", "cache", "own", "phases"),
    [
        # 16 sequences of 1,024 tokens: 8 blocks of 128 and an empty one
        ("cpu", 4 * (1_000_000 + 1000 * 64), 16 * 1152 * 2048, 3 * 10**8, PHASES),
        ("cuda", 4 * 1_000_000, 16 * 1152 * 2048, 15 * 10**8, (ROLLOUT,)),
    ],
)
def test_vllm_by_hand(device: str, copy: int, cache: int, own: int, phases: tuple[str, ...]) -> None:
    """Two layers of 4 heads of 32: 2 x 2 x 4 x 32 x 4 = 2,048 bytes a token. On a card vLLM sleeps."""
    shape = replace(
        read_shape(EMBEDDED_NAME, False, 64),
        tensor_sizes=(1_000_000,), vocab_size=1000, hidden_size=64, layers=2, kv_heads=4, head_size=32,
    )  # fmt: skip
    rollout = RolloutConfig(engine="vllm", max_new_tokens=512, max_num_seqs=16, top_p=1.0)
    config = Config(prompt=PromptConfig(max_tokens=512), rollout=rollout)
    parts = {p.name: p for p in memory_parts(config, shape, Target(device, torch.float32, 24 * 10**9))}
    for name, size in (("weights in vLLM", copy), ("KV cache", cache)):
        assert (parts[name].bytes, parts[name].phases) == (size, phases)
    assert (parts["vLLM"].bytes, parts["vLLM"].phases) == (own, PHASES)
    assert parts["sampling"].bytes == 16 * 1000 * (4 + 8 + 17)
    assert "packed weights" not in parts
    adapted = config.model_copy(update={"adapter": AdapterConfig(rank=4)})
    sleeping = 2 * 4 * 1_000_000 if device == "cuda" else 0  # vLLM's base, while a merged model is written
    assert host_bytes(adapted, shape, Target(device, torch.float32, 24 * 10**9)) == sleeping


def test_sampling_by_hand() -> None:
    """80 sequences and 49,152 logits: in bfloat16 and twice in float32, and exponentiated; where all have a wide
    nucleus, in float64, sorted, and as the sort needs them on a card; without a nucleus 17 bytes. 400 greedy
    completions of an evaluation sort nothing.
    """
    shape = read_shape(EMBEDDED_NAME, False, 1024)

    def sampling(top_p: float, n: int) -> int:
        config = Config(rollout=RolloutConfig(top_p=top_p), eval=EvalConfig(n=n, validation_n=1))
        parts = memory_parts(config, shape, Target("cuda", torch.bfloat16, 80 * 10**9))
        return next(p.bytes for p in parts if p.name == "sampling")

    assert sampling(0.9, 1) == 80 * 49_152 * (2 + 4 + 4 + 4 + 8 + 16 + 40)
    assert sampling(1, 1) == 80 * 49_152 * (2 + 4 + 4 + 4 + 17)
    assert sampling(0.9, 256) == 80 * 49_152 * 78
    assert sampling(1, 256) == 256 * 49_152 * 14


def test_activations_of_smollm2_by_hand() -> None:
    """5,760 numbers and 11 float32 per token and layer, and 4 x 576 numbers after the layers."""
    parts = part_sizes(EMBEDDED_NAME, "float32", 1280, update=UpdateConfig(micro_batch_tokens=4096))
    sums = 4 * 30 * 2 * 3 * 64  # of the gradients of a shared token's keys and values
    assert parts["activations"] == (4096 + 64) * (30 * (4 * 5760 + 4 * 11) + 16 * 576) + 64 * sums


@pytest.mark.parametrize(
    ("preset", "steps", "refill", "completions", "groups"),
    [("article", 0, 1, 1, 4), ("article", 5, 1, 6, 4), ("grpo", 0, 3, 6, 4), ("grpo", 5, 3, 6, 12)],
)
def test_a_warm_start_learns_from_all_that_a_step_asks(
    preset: PresetName, steps: int, refill: int, completions: int, groups: int
) -> None:
    """4 questions of at most 100 tokens, 6 completions each of at most 10."""
    config = Config(
        prompt=PromptConfig(max_tokens=100),
        rollout=RolloutConfig(prompts_per_step=4, group_size=6, max_new_tokens=10, refill=refill),
        objective=ObjectiveConfig(preset=preset),
        train=TrainConfig(warm_start=steps, steps=20),
    )
    shape = read_shape(EMBEDDED_NAME, False, 1024)
    assert max_step_tokens(config, shape) == groups * (100 + completions * 10)


@pytest.mark.parametrize(
    ("device", "forward_pass", "share"),
    [("cpu", "full_sequence", 0.36), ("cpu", "tree", 0), ("cuda", "full_sequence", 0)],
)
def test_gaps_between_activations_are_planned_where_glibc_leaves_them(
    device: str, forward_pass: Literal["tree", "full_sequence"], share: float
) -> None:
    shape = replace(read_shape(EMBEDDED_NAME, False, 1280), forward_pass=forward_pass)
    parts = memory_parts(Config(), shape, Target(device, torch.bfloat16, 24 * 10**9))
    sizes = {part.name: part.bytes for part in parts}
    assert sizes.get("allocator, activations", 0) == round(share * sizes["activations"])


FAMILY_NAMES = ["llama", "qwen3", "smollm3", "granite", "olmo2", "gemma3"]
BRANCH = Branch(range(20, 60), [range(5, 35), range(7, 37)])


def saved_for_backward(model: Any, run: Callable[[], Any]) -> int:
    """The storages that autograd saves for the backward pass, each once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights and t.is_floating_point():
            saved[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run()
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_the_forward_pass_saves(family: str, dtype: torch.dtype) -> None:
    model = make_family(family).to(dtype)
    llama = Llama(model)
    tree = PrefixTree([BRANCH], 0, llama.device)
    measured = saved_for_backward(
        model, lambda: llama(tree.ids, tree.positions, PrefixAttention(llama, tree))
    ) / len(tree.ids)
    per_token = activation_bytes_per_token(shape_of(model, 64), dtype.itemsize)
    after_layers = 2 * 16 * dtype.itemsize  # the final states and their gradient come after the forward pass
    assert measured == pytest.approx(per_token - after_layers, rel=0.04)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_transformers_modules_save(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same family, at the same shape; each completion is passed with its prompt."""
    model = make_family(family).to(dtype)
    monkeypatch.setattr(model_shape, "supports_model", lambda *_: False)
    shape = replace(shape_of(model, 64), forward_pass="full_sequence")
    measured = saved_for_backward(model, lambda: FullSequenceForward(model).states([BRANCH], None)) / 140
    per_token = activation_bytes_per_token(shape, dtype.itemsize)
    assert measured == pytest.approx(per_token, rel=0.1)
