"""The plan against literals worked out by hand, and against what the code really allocates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, Phi3Config, Phi3ForCausalLM

from helpers.groups import make_groups, make_weights
from helpers.tiny import make_model, make_tokenizer
from reinforce_lite.cli.app import main
from reinforce_lite.config import (
    Config,
    EvalConfig,
    PromptConfig,
    RolloutConfig,
    UpdateConfig,
    load_config,
    override_config,
)
from reinforce_lite.engines import native
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.embedded import EMBEDDED_NAME, EMBEDDED_SHAPE, cache_folder
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, PrefixTree
from reinforce_lite.planner import estimate, plan
from reinforce_lite.planner.estimate import Target, memory_parts
from reinforce_lite.planner.model_shape import read_shape, shape_of
from reinforce_lite.planner.plan import choice_costs
from reinforce_lite.types import Prompt, Sampling
from reinforce_lite.utils import memory

QWEN_3B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
LLAMA_3B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
BF16 = torch.bfloat16
N = 3_085_938_688  # of Qwen2.5-3B: 151936 x 2048 + 36 x 77,076,992 + 2048
NEVER = """
from pathlib import Path
Path("it_ran").touch()
raise SystemExit(7)
"""


def folder(tmp_path: Path, values: dict[str, Any]) -> str:
    """A model's folder with nothing in it but its config."""
    to = tmp_path / "model"
    to.mkdir()
    (to / "config.json").write_text(json.dumps(values))
    return str(to)


def planned(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any, str]:
    """The status, the JSON on standard output, and what stands on standard error."""
    status = main(["plan", *args, "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out), err


def chosen(found: Any) -> dict[str, Any]:
    return {key: choice["value"] for key, choice in found["chosen"].items()}


@pytest.mark.parametrize(
    ("values", "parameters", "kv"),
    [(QWEN_3B, N, 36_864), (LLAMA_3B, 3_212_749_824, 114_688), (SMOLLM2, 134_515_008, 23_040)],
)
def test_parameters_and_cache_from_a_config_alone(
    tmp_path: Path, values: dict[str, Any], parameters: int, kv: int
) -> None:
    shape = read_shape(folder(tmp_path, values), False, 1024)
    assert shape.parameters == parameters
    assert estimate.kv_bytes(shape, BF16) == kv
    assert shape.passes == "tree"


SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


def test_other_families_are_counted_as_they_are_built(tmp_path: Path) -> None:
    phi = Phi3ForCausalLM(Phi3Config(**SMALL, num_key_value_heads=2))
    gemma = GemmaForCausalLM(GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=24))
    # Phi-3 does not tie: 2 x 300 x 32 + 3 x (32 x 64 + 32 x 32 + 3 x 32 x 48 + 2 x 32) + 32
    # Gemma does: 300 x 32 + 3 x (2 x 32 x 96 + 2 x 32 x 24 + 3 x 32 x 48 + 2 x 32) + 32
    for i, (model, parameters, kv_heads, head_size) in enumerate(
        [(phi, 42_464, 2, 8), (gemma, 46_688, 1, 24)]
    ):
        at = tmp_path / str(i)
        model.config.save_pretrained(at)
        shape = read_shape(str(at), False, 64)
        assert shape.parameters == parameters == sum(p.numel() for p in model.parameters())
        assert shape.sizes == tuple(p.numel() for p in model.parameters())
        assert (shape.kv_heads, shape.head_size) == (kv_heads, head_size)
    assert shape.passes == "shared"  # Gemma goes through transformers' modules


def test_the_embedded_model_needs_neither_folder_nor_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(tmp_path / "empty"))
    status, found, _ = planned(["--model.dtype", "float32", "--model.device", "cpu"], capsys)
    assert status == 0
    assert found["parameters"] == 134_515_008
    assert found["kv_bytes_per_token"] == 46_080
    assert found["memory_bytes"] > 10**9
    assert found["fits"]
    assert chosen(found)["update.micro_batch_tokens"] == 3072
    assert found["parts"]["weights"]["bytes"] == 538_060_032
    assert not (tmp_path / "empty").exists()


def test_its_constants_are_those_of_the_folder() -> None:
    made = cache_folder() / EMBEDDED_NAME / "config.json"
    if not made.exists():
        pytest.skip("the embedded model is not in the cache")
    values = json.loads(made.read_text())
    assert {key: values[key] for key in EMBEDDED_SHAPE} == EMBEDDED_SHAPE


def test_what_qwen_3b_needs_beside_other_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The article's 36 and 72 GB are 12 and 24 bytes a parameter at 3.0B; these are the model's own."""
    args = ["gsm8k-0.5b", "--model.name", folder(tmp_path, QWEN_3B), "--vram", "64"]
    status, found, _ = planned(args, capsys)
    assert status == 0
    assert found["parameters"] == N
    together = {name: column["together"] for name, column in found["kept"].items()}
    assert together == {
        "this recipe": 55_546_896_384,  # 18 bytes
        "article": 37_031_264_256,
        "GRPO": 43_203_141_632,
        "PPO": 74_062_528_512,
    }
    sizes = {name: part["bytes"] for name, part in found["parts"].items()}
    assert sizes["weights"] == 6_171_877_376
    assert sizes["gradients"] == 12_343_754_752
    assert sizes["optimizer state"] == 24_687_509_504 + 4 * 434
    assert sizes["master copy"] == 12_343_754_752
    assert sizes["KV cache"] == 200 * (512 + 300) * 36_864  # an evaluation's, which is more than a step's
    assert sizes["logit chunks"] == 883 * 151_936 * 10  # 2^27 numbers, in bfloat16 and twice in float32
    assert chosen(found)["update.micro_batch_tokens"] == 2048
    assert found["flags"] == ["--update.micro-batch-tokens 2048"]
    assert "up to 14 parts instead of 2" in found["chosen"]["update.micro_batch_tokens"]["costs"]
    gb = {name: round(scheme["bytes"] / 1e9, 1) for name, scheme in found["schemes"].items()}
    assert gb["float32, 32-bit"] == 49.4
    assert gb["bfloat16, 32-bit"] == 55.5
    assert gb["bfloat16, 16-bit"] == 24.7
    assert gb["bfloat16, 8-bit"] == 18.6


def test_what_8_bits_leave_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 241,664 numbers in 181 gains and biases are kept in float32. The other 3,085,697,024 are
    moved in pieces of at most 2^20, 297 of the embedding's and 76 in each of 36 layers: 3033. Each piece has
    two moments of a byte a number and a float32 scale for 256, two tables of 1 KiB, and a count."""
    args = ["gsm8k-3b-24gb", "--model.name", folder(tmp_path, QWEN_3B), "--vram", "24"]
    status, found, _ = planned(args, capsys)
    assert status == 0
    assert found["flags"] == []  # the recipe as it is
    sizes = {name: part["bytes"] for name, part in found["parts"].items()}
    assert sizes["weights"] == sizes["gradients"] == 6_171_877_376
    large = 2 * 3_085_697_024 + 8 * 3_085_697_024 // 256 + 3033 * (2 * 1024 + 4)
    assert sizes["optimizer state"] == large + 8 * 241_664 + 4 * 181 == 6_275_979_832
    assert sizes["master copy"] == 4 * 241_664
    # 4,096 tokens keep 36 layers' inputs of 2,048 numbers, one layer's 32,768 + 18 in float32, and what is
    # behind the layers; the system line and the template's 64 tokens keep all
    behind = 2048 * (4 + 3 * 2)
    layer = 2 * (2 * 2048 + 2560 + 2048 + 2 * 11008) + 4 * 18
    text = len(load_config("gsm8k-3b-24gb").prompt.system.encode()) + 64
    sums = 4 * 36 * 2 * 2 * 128  # of the gradients of the shared keys and values
    expected = 4096 * (36 * 2 * 2048 + layer + behind) + text * (36 * layer + behind + sums)
    assert sizes["activations"] == expected


@pytest.mark.parametrize("values", [QWEN_3B, LLAMA_3B])
@pytest.mark.parametrize(
    ("recipe", "vram"), [("gsm8k-3b-24gb", "24"), ("gsm8k-3b-48gb", "48"), ("article", "48")]
)
def test_the_3b_recipes_fit_their_cards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], recipe: str, vram: str
) -> None:
    status, found, _ = planned([recipe, "--model.name", folder(tmp_path, values), "--vram", vram], capsys)
    assert status == 0
    assert found["flags"] == []


@pytest.mark.parametrize("values", [QWEN_3B, LLAMA_3B])
def test_4_gb_is_refused_with_the_table(
    tmp_path: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["gsm8k-0.5b", "--model.name", folder(tmp_path, values), "--vram", "4"]
    status, found, err = planned(args, capsys)
    assert status == 3
    assert not found["fits"]
    assert chosen(found)["update.micro_batch_tokens"] == 812  # one longest answer
    assert "--vram" in err
    assert main(["plan", *args]) == 3
    out, err = capsys.readouterr()
    for row in ("weights", "optimizer state", "KV cache", "activations", "largest temporary", "total", "PPO"):
        assert row in out
    assert "does not fit into 4.00 GB" in out
    assert err.startswith("reinforce-lite: ")


def test_the_nearest_card_is_the_smallest_that_holds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["gsm8k-0.5b", "--model.name", folder(tmp_path, QWEN_3B), "--vram"]
    status, found, err = planned([*args, "10"], capsys)
    assert status == 3
    assert f"would need {found['total_bytes'] / 1e9:.2f} GB at the least, and there are 10.00 GB" in err
    card = int(err.split("--vram ")[1].split()[0])
    assert planned([*args, str(card)], capsys)[0] == 0
    assert planned([*args, str(card - 1)], capsys)[0] == 3


def test_the_model_that_would_fit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At 4 bytes and 8 bits: two moments, a scale of 4 bytes for each 256 of them, 6.03125 in all."""
    args = ["gsm8k-0.5b", "--model.name", folder(tmp_path, QWEN_3B), "--vram", "16"]
    _, found, err = planned(args, capsys)
    beside = found["total_bytes"] - 6.03125 * N
    assert f"a model of about {int((16 * 10**9 - beside) / 6.03125):,} parameters at most" in err


def test_what_costs_least_is_given_up_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Smaller micro-batches, then activation checkpointing, and 32 bits last."""
    args = ["gsm8k-0.5b", "--model.name", folder(tmp_path, QWEN_3B), "--vram"]

    def flags(vram: str) -> list[str]:
        status, found, _ = planned([*args, vram], capsys)
        assert status == 0
        assert all(
            found["chosen"][key]["costs"] for key in found["chosen"] if key_flag(key) in found["flags"]
        )
        return [flag.split(".")[1] for flag in found["flags"]]

    def key_flag(key: str) -> str:
        return "--" + key.replace("_", "-")

    assert flags("100") == []
    assert flags("80") == ["micro-batch-tokens 8192"]
    assert flags("70") == ["micro-batch-tokens 4096"]
    assert flags("60") == ["micro-batch-tokens 812"]
    assert flags("59") == ["activation-checkpointing", "micro-batch-tokens 4096"]
    assert flags("58") == ["optimizer-state 8-bit"]
    assert flags("24") == ["optimizer-state 8-bit", "micro-batch-tokens 1024"]
    assert flags("22") == ["optimizer-state 8-bit", "activation-checkpointing", "micro-batch-tokens 4096"]


def test_training_is_refused_before_a_weight_is_loaded(
    tmp_path: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's folder holds no weights at all."""
    monkeypatch.setattr(memory, "installed_bytes", lambda: 40 * 10**9)
    args = ["train", "gsm8k-0.5b", "--model.name", folder(tmp_path, QWEN_3B), "--model.device", "cpu"]
    args += ["--model.dtype", "bfloat16"]
    assert main([*args, "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "does not fit into 40.00 GB" in err
    assert "it fits with --update.optimizer-state 8-bit" in err
    monkeypatch.setattr(memory, "installed_bytes", lambda: 4 * 10**9)
    assert main(args) == 3
    assert "nearest: --vram" in capsys.readouterr().err


def test_16_bits_need_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--update.optimizer-state", "16-bit", "--model.dtype", "float32"]) == 2
    assert "update.optimizer_state 16-bit is for bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize("saved", [torch.float32, BF16])
def test_what_is_kept_is_what_the_updater_holds(tmp_path: Path, saved: torch.dtype) -> None:
    """Whichever dtype the model's folder is in: finer weights than bfloat16's become the masters."""
    make_model(hidden_size=64, vocab_size=320, head_dim=32).to(saved).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    for dtype, state in estimate.SCHEMES:
        policy = load_policy(str(tmp_path), dtype, "cpu", keep_float32=state == "32-bit")
        updater = Updater(policy, UpdateConfig(optimizer_state=state), 0.7)
        updater.compute_gradient(make_groups(), make_weights())
        gradients = nbytes(m.grad for m in updater.master_weights.values())
        assert (
            dtype == "float32" or state != "32-bit" or all(p.grad is None for p in policy.model.parameters())
        )
        assert updater.apply_gradient(updater.compute_gradient(make_groups(), make_weights()), 1)
        assert all(w.grad is None for w in (*updater.master_weights.values(), *updater.params.values()))
        own_masters = updater.master_weights is not updater.params
        held = {
            "weights": nbytes(policy.model.parameters()),
            "gradients": gradients,
            "optimizer state": moments_bytes(updater.optimizer),
            "master copy": nbytes(updater.master_weights.values())
            if own_masters
            else copies_bytes(updater.optimizer),
        }
        parts = tiny_parts(tmp_path, dtype, update=UpdateConfig(optimizer_state=state))
        assert held == {name: parts[name] for name in held}


def moments_bytes(optimizer: Any) -> int:
    """Each tensor that the optimizer's own state holds; of a quantized moment its codes, scales and table."""
    pieces = getattr(optimizer, "pieces", None)
    held = [p.state for p in pieces] if pieces else optimizer.optimizer.state.values()
    tensors = [t for values in held for t in values.values()]
    assert not pieces or any(hasattr(t, "codes") for t in tensors)
    return sum(nbytes([t.codes, t.scale, t.qmap]) if hasattr(t, "codes") else t.nbytes for t in tensors)


def copies_bytes(optimizer: Any) -> int:
    return nbytes(p.elements for p in getattr(optimizer, "pieces", ()) if p.is_master)


def nbytes(tensors: Any) -> int:
    return sum(t.nbytes for t in tensors)


def tiny_parts(model_folder: Path, dtype: str, **sections: Any) -> dict[str, int]:
    settings = Config(**sections)
    shape = read_shape(str(model_folder), False, 64)
    found = memory_parts(settings, shape, Target("cpu", getattr(torch, dtype), None))
    return {part.name: part.bytes for part in found}


@pytest.mark.parametrize("cache_bytes", [768 * 10**6, 40_000])
@pytest.mark.parametrize("samples", [1, 3, 5])
def test_the_cache_is_what_the_engine_allocates(
    policy: Policy, model_folder: Path, monkeypatch: pytest.MonkeyPatch, cache_bytes: int, samples: int
) -> None:
    made: list[native.KVCache] = []

    class Seen(native.KVCache):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(native, "KVCache", Seen)
    monkeypatch.setattr(native, "CACHE_BYTES", cache_bytes)
    prompts = [Prompt((10 + i, *range(40, 40 + 8 - i))) for i in range(4)]  # of 9 tokens and fewer
    sampling = Sampling(samples=samples, max_new_tokens=7)
    native.NativeEngine(policy).generate(prompts, sampling, seed=0)
    parts = tiny_parts(
        model_folder,
        "float32",
        prompt=PromptConfig(max_tokens=9),
        rollout=RolloutConfig(prompts_per_step=4, group_size=samples, max_new_tokens=7),
        eval=EvalConfig(n=1, validation_n=1),
    )
    assert parts["KV cache"] == made[0].prompts.nbytes + made[0].sequences.nbytes


def test_activations_of_smollm2() -> None:
    """5,760 numbers a token and layer, 11 float32 beside them, and 4 x 576 numbers behind the layers."""
    settings = Config(update=UpdateConfig(micro_batch_tokens=4096))
    shape = read_shape(EMBEDDED_NAME, False, 1280)
    parts = memory_parts(settings, shape, Target("cpu", torch.float32, None))
    kept = {part.name: part.bytes for part in parts}["activations"]
    sums = 4 * 30 * 2 * 3 * 64  # of the gradients of a shared token's keys and values
    assert kept == (4096 + 64) * (30 * (4 * 5760 + 4 * 11) + 16 * 576) + 64 * sums


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_the_pass_saves(dtype: str) -> None:
    """The storages that autograd is handed for the backward pass, each once, without the weights."""
    model = make_model(num_hidden_layers=6)
    for p in model.parameters():
        p.data = p.data.to(getattr(torch, dtype))
    llama = Llama(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights and t.is_floating_point():
            saved[storage.data_ptr()] = storage
        return t

    tree = PrefixTree([Branch(range(20, 60), [range(5, 35), range(7, 40)])], 0, llama.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        llama(tree.ids, tree.places, PrefixAttention(llama, tree))
    item = getattr(torch, dtype).itemsize
    per_token = estimate.kept_per_token(shape_of(model, 64), item)
    behind = 2 * 16 * item  # the last states and their gradient are made after the pass
    measured = sum(storage.nbytes() for storage in saved.values()) / len(tree.ids)
    assert measured == pytest.approx(per_token - behind, rel=0.02)


def test_no_file_of_the_task_runs(
    in_tmp: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_tmp / "my_task.py").write_text(NEVER)
    (in_tmp / "mine.toml").write_text(f'[model]\nname = "{model_folder}"\n[task]\nname = "./my_task.py"\n')
    status, found, _ = planned(["mine.toml"], capsys)
    assert status == 0
    assert found["recipe"] == "mine"
    assert not (in_tmp / "it_ran").exists()
    assert not (in_tmp / "runs").exists()


def test_a_card_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    """Its dtype can't be asked for: bfloat16; the quickstart fits as it is."""
    assert main(["plan", "--vram", "24"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("smollm2-135m in bfloat16 on cuda: 134,515,008 parameters")
    assert "fits into 24.00 GB, as it is" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--vram", "0"], "a card can't have 0 GB"),
        (["--vram", "nan"], "a card can't have nan GB"),
        (["--model.name", "no/such/model"], "can't load the model 'no/such/model'"),
        (["nothere"], "there is no recipe 'nothere'"),
    ],
)
def test_bad_usage(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *args]) == 2
    assert said in capsys.readouterr().err


def test_what_a_smaller_micro_batch_costs() -> None:
    """Of 28,096 tokens a step: 16 parts instead of 2 begin with 14 more prompts of 512."""
    settings = load_config("gsm8k-0.5b")
    shape = shape_of(make_model(), 64)
    place = Target("cuda", BF16, 10**9)
    smaller = override_config(settings, {"update.micro_batch_tokens": 1756})
    said = choice_costs(plan.Plan(smaller, settings, shape, place, ()))["update.micro_batch_tokens"]
    assert "up to 16 parts instead of 2" in said
    assert "up to 26% more tokens" in said
