"""Plans of recipes against literals worked out by hand, and what `plan` and `train` say of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.fake_cuda import FakeCuda
from helpers.model_configs import (
    LLAMA_3B,
    QWEN_3B,
    QWEN_3B_PARAMETERS,
    QWEN_7B,
    QWEN_7B_PARAMETERS,
    config_folder,
)
from helpers.tiny import make_model
from reinforce_lite.cli.app import main
from reinforce_lite.cli.plan_table import show_plan_after_oom
from reinforce_lite.config import load_config, override_config
from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.models.policy import load_policy
from reinforce_lite.planner.model_shape import read_shape, shape_of
from reinforce_lite.planner.plan import Plan, check_fits, choice_costs, plan_after_oom, plan_unchanged
from reinforce_lite.planner.schemes import Target
from reinforce_lite.utils import memory

TASK_THAT_MUST_NOT_RUN = """
from pathlib import Path
Path("it_ran").touch()
raise SystemExit(7)
"""


def plan_json(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any, str]:
    """The exit status of `plan`, its JSON, and its standard error."""
    status = main(["plan", *args, "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out), err


def chosen_values(plan: Any) -> dict[str, Any]:
    return {key: choice["value"] for key, choice in plan["chosen"].items()}


def test_plan_of_the_embedded_model_needs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(tmp_path / "empty"))
    status, plan, _ = plan_json(["--model.dtype", "float32", "--model.device", "cpu"], capsys)
    assert status == 0
    assert plan["parameters"] == 134_515_008
    assert plan["kv_bytes_per_token"] == 46_080
    assert plan["memory_bytes"] > 10**9
    assert plan["fits"]
    assert chosen_values(plan)["update.micro_batch_tokens"] == 3072
    assert plan["parts"]["weights"]["bytes"] == 538_060_032
    assert not (tmp_path / "empty").exists()


def test_plan_of_qwen_3b_and_of_other_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The article's 36 and 72 GB are 12 and 24 bytes a parameter at 3.0B; these are the model's own."""
    args = ["gsm8k-0.5b", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "64"]
    status, plan, _ = plan_json(args, capsys)
    assert status == 0
    assert plan["parameters"] == QWEN_3B_PARAMETERS
    totals = {name: sizes["total"] for name, sizes in plan["training_state"].items()}
    assert totals == {
        "this recipe": 55_546_896_384,  # 18 bytes
        "article": 37_031_264_256,
        "GRPO": 43_203_141_632,
        "PPO": 74_062_528_512,
    }
    sizes = {name: part["bytes"] for name, part in plan["parts"].items()}
    assert sizes["weights"] == 6_171_877_376
    assert sizes["gradients"] == 12_343_754_752
    assert sizes["optimizer state"] == 24_687_509_504 + 4 * 434
    assert sizes["master weights"] == 12_343_754_752
    assert sizes["KV cache"] == 200 * (512 + 512) * 36_864  # an evaluation's, which is more than a step's
    assert sizes["logit chunk"] == 883 * 151_936 * 10  # 2^27 numbers, in bfloat16 and twice in float32
    assert sizes["KV cache, update"] == (80 * 512 + 8 * 512) * 36_864  # less than 64 GB / 32: kept
    assert chosen_values(plan)["update.micro_batch_tokens"] == 1024
    assert plan["flags"] == ["--update.micro-batch-tokens 1024"]
    assert (
        "up to 44 micro-batches per step instead of 3" in plan["chosen"]["update.micro_batch_tokens"]["cost"]
    )
    gb = {name: round(scheme["bytes"] / 1e9, 1) for name, scheme in plan["schemes"].items()}
    assert gb["float32, 32-bit"] == 49.4
    assert gb["bfloat16, 32-bit"] == 55.5
    assert gb["bfloat16, 16-bit"] == 24.7
    assert gb["bfloat16, 8-bit"] == 18.6


def test_plan_of_qwen_3b_with_8_bit_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 241,664 numbers in 181 gains and biases are kept in float32. The other 3,085,697,024 are
    moved in pieces of at most 2^20, 297 of the embedding's and 76 in each of 36 layers: 3033. Each piece has
    two moments of a byte a number and a float32 scale for 256, two tables of 1 KiB, and a count."""
    args = ["gsm8k-3b-24gb", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "24"]
    status, plan, _ = plan_json(args, capsys)
    assert status == 0
    assert plan["flags"] == []  # the recipe is unchanged
    sizes = {name: part["bytes"] for name, part in plan["parts"].items()}
    assert sizes["weights"] == sizes["gradients"] == 6_171_877_376
    large = 2 * 3_085_697_024 + 8 * 3_085_697_024 // 256 + 3033 * (2 * 1024 + 4)
    assert sizes["optimizer state"] == large + 8 * 241_664 + 4 * 181 == 6_275_979_832
    assert sizes["master weights"] == 4 * 241_664
    # 4,096 tokens keep 36 layers' inputs of 2,048 numbers, one layer's 32,768 + 18 in float32, and what is
    # after the layers; the system line and the template's 64 tokens keep all
    after_layers = 2048 * (4 + 3 * 2)
    layer = 2 * (2 * 2048 + 2560 + 2048 + 2 * 11008) + 4 * 18
    text = len(load_config("gsm8k-3b-24gb").prompt.system.encode()) + 64
    sums = 4 * 36 * 2 * 2 * 128  # of the gradients of the shared keys and values
    expected = 4096 * (36 * 2 * 2048 + layer + after_layers) + text * (36 * layer + after_layers + sums)
    assert sizes["activations"] == expected


def test_plan_of_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: of each layer 2 (2048 + 2048) + 2 (2048 + 256) + 3 (2048 + 11008) inputs and outputs, each 16
    times; a float32 weight, its gradient and two moments, and a count for each of 2 x 7 x 36 matrices."""
    args = ["gsm8k-3b-12gb", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "12"]
    status, plan, _ = plan_json(args, capsys)
    assert status == 0
    assert plan["flags"] == []
    sizes = {name: part["bytes"] for name, part in plan["parts"].items()}
    assert sizes["weights"] == 6_171_877_376
    assert sizes["adapter"] == 16 * 16 * 36 * (2 * 4096 + 2 * 2304 + 3 * 13_056) + 4 * 504
    assert sizes.keys().isdisjoint({"gradients", "optimizer state", "master weights"})


def test_plan_of_a_7b_adapter_fits_24_gb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["gsm8k-7b-24gb", "--model.name", config_folder(tmp_path, QWEN_7B), "--vram", "24"]
    status, plan, _ = plan_json(args, capsys)
    assert (status, plan["flags"]) == (0, [])
    assert plan["parts"]["weights"]["bytes"] == 2 * QWEN_7B_PARAMETERS


def test_plan_of_a_base_in_8_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 28 layers of 233,046,016 numbers in 8 bits, with scales for 4,608 + 3,584 + 37,888 + 3,584 rows;
    the rest, two matrices of 152,064 x 3,584, gains and biases, in bfloat16."""
    args = ["gsm8k-7b-24gb", "--model.name", config_folder(tmp_path, QWEN_7B), "--vram", "14"]
    status, _, err = plan_json(args, capsys)
    assert status == 3
    assert "--model.base-weights int8" in err
    _, _, err = plan_json([*args, "--rollout.engine", "vllm"], capsys)
    assert "what would fit: " in err
    assert "int8" not in err  # which vLLM refuses
    assert main(["plan", *args, "--rollout.engine", "vllm", "--model.base-weights", "int8"]) == 2
    assert "vllm does not support weights in 8 bits" in capsys.readouterr().err
    status, plan, _ = plan_json([*args, "--model.base-weights", "int8"], capsys)
    assert (status, plan["flags"]) == (0, [])
    numbers, rows = 28 * 233_046_016, 28 * (4608 + 3584 + 2 * 18_944 + 3584)
    assert numbers == 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944)
    sizes = {name: part["bytes"] for name, part in plan["parts"].items()}
    assert sizes["weights"] == numbers + 2 * (QWEN_7B_PARAMETERS - numbers + rows)
    assert sizes["weights of one product"] == 2 * 2 * 18_944 * 3584


def test_plan_of_a_base_in_8_bits_is_that_of_its_tensors(model_folder: Path) -> None:
    policy = load_policy(str(model_folder), "bfloat16", "cpu", keep_float32=False, int8=True)
    held = [*policy.model.parameters(), *(b for n, b in policy.model.named_buffers() if "proj" in n)]
    values = {"model.base_weights": "int8", "adapter.rank": 2, "model.dtype": "bfloat16"}
    config = load_config("quickstart", values)
    target = Target("cpu", torch.bfloat16, None)
    (planned,) = (
        p for p in Plan(config, config, shape_of(make_model(), 100), target).parts if p.name == "weights"
    )
    assert planned.bytes == sum(t.nbytes for t in held)


def test_plan_suggests_an_adapter_where_all_weights_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["gsm8k-3b-24gb", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "12"]
    status, _, err = plan_json(args, capsys)
    assert status == 3
    assert "--adapter.rank 16 --update.optimizer-state 32-bit" in err


@pytest.mark.parametrize("values", [QWEN_3B, LLAMA_3B])
@pytest.mark.parametrize(
    ("recipe", "vram"),
    [("gsm8k-3b-24gb", "24"), ("gsm8k-3b-48gb", "48"), ("article", "48"), ("gsm8k-3b-12gb", "12")],
)
def test_3b_recipes_fit_their_gpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], recipe: str, vram: str
) -> None:
    status, plan, _ = plan_json(
        [recipe, "--model.name", config_folder(tmp_path, values), "--vram", vram], capsys
    )
    assert status == 0
    assert plan["flags"] == []


@pytest.mark.parametrize("values", [QWEN_3B, LLAMA_3B])
def test_plan_that_does_not_fit_exits_3_after_its_tables(
    tmp_path: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["gsm8k-0.5b", "--model.name", config_folder(tmp_path, values), "--vram", "4"]
    status, plan, err = plan_json(args, capsys)
    assert status == 3
    assert not plan["fits"]
    assert chosen_values(plan)["update.micro_batch_tokens"] == 1024  # one longest prompt and completion
    assert "what would fit: " in err
    assert main(["plan", *args]) == 3
    out, err = capsys.readouterr()
    for row in ("weights", "optimizer state", "KV cache", "activations", "largest temporary", "total", "PPO"):
        assert row in out
    assert "does not fit into 4.00 GB" in out
    assert err.startswith("reinforce-lite: ")


def test_suggested_memory_is_the_smallest_that_holds_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["gsm8k-0.5b", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram"]
    status, plan, err = plan_json([*args, "10"], capsys)
    assert status == 3
    assert f"at least {plan['total_bytes'] / 1e9:.2f} GB of memory, but there are 10.00 GB" in err
    size = int(err.split("what would fit: ")[1].split()[0])
    assert plan_json([*args, str(size)], capsys)[0] == 0
    assert plan_json([*args, str(size - 1)], capsys)[0] == 3


def test_suggested_model_is_the_largest_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With 8-bit moments elsewhere, weights and gradients remain: 4 bytes."""
    args = ["gsm8k-0.5b", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "13"]
    _, plan, err = plan_json(args, capsys)
    other_bytes = plan["total_bytes"] - 4 * QWEN_3B_PARAMETERS
    assert f"a model of about {int((13 * 10**9 - other_bytes) / 4):,} parameters at most" in err


def test_plan_gives_up_first_what_costs_least(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Smaller micro-batches, then activation checkpointing, 32 bits, and moments on the card last."""
    args = ["gsm8k-0.5b", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram"]

    def flags(vram: str) -> list[str]:
        status, plan, _ = plan_json([*args, vram], capsys)
        assert status == 0
        assert all(plan["chosen"][key]["cost"] for key in plan["chosen"] if key_flag(key) in plan["flags"])
        return [flag.split(".")[1] for flag in plan["flags"]]

    def key_flag(key: str) -> str:
        return "--" + key.replace("_", "-")

    assert flags("100") == []
    assert flags("80") == ["micro-batch-tokens 8192"]
    assert flags("70") == ["micro-batch-tokens 4096"]
    assert flags("63") == ["micro-batch-tokens 1024"]
    assert flags("62") == ["activation-checkpointing", "micro-batch-tokens 8192"]
    assert flags("61") == ["activation-checkpointing", "micro-batch-tokens 4096"]
    assert flags("58") == ["optimizer-state 8-bit", "micro-batch-tokens 8192"]
    assert flags("24") == ["optimizer-state 8-bit", "micro-batch-tokens 1024"]
    assert flags("23") == ["optimizer-state 8-bit", "activation-checkpointing", "micro-batch-tokens 4096"]
    assert flags("18")[:2] == ["optimizer-state 8-bit", "offload-optimizer"]


def test_plan_with_offloaded_moments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the card are 2^16 blocks of 256 codes and a scale, for two moments. The machine's own memory holds all of
    them beside a file of the model, each tensor rounded up to a power of two: in each of 36 layers two of 2^22
    codes and 2^16 bytes of scales, two of 2^19, three of 22,544,384, and the embedding's 311,164,928."""
    args = ["gsm8k-3b-24gb", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "24"]
    (_, on_card, _), (status, plan, _) = (
        plan_json([*args, *more], capsys) for more in ([], ["--update.offload-optimizer"])
    )
    assert status == 0
    assert plan["parts"]["optimizer state"]["bytes"] == 2**16 * 2 * (256 + 4)
    layer = 2 * (2**22 + 2**16) + 2 * (2**19 + 2**13) + 3 * (2**25 + 2**19)
    assert plan["host_bytes"] == 5 * 10**9 + 2 * (36 * layer + 2**29 + 2**23)
    assert on_card["host_bytes"] == 5 * 10**9


def test_plan_with_sharded_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quarter of the 12 bytes of master weights and moments; the main process collects all when it saves."""
    args = ["gsm8k-0.5b", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "64"]
    status, plan, _ = plan_json([*args, "--processes", "4", "--update.shard-optimizer"], capsys)
    assert status == 0
    sizes = {name: part["bytes"] for name, part in plan["parts"].items()}
    assert sizes["weights"] == 6_171_877_376
    assert sizes["gradients"] == 12_343_754_752
    assert sizes["optimizer state"] == 24_687_509_504 / 4 + 4 * 434
    assert sizes["master weights"] == 12_343_754_752 / 4
    assert plan["training_state"]["this recipe"]["total"] == QWEN_3B_PARAMETERS * (2 + 4 + 12 / 4)
    assert plan["host_bytes"] == 6_171_877_376 + 24_687_509_504 + 12_343_754_752 + 4 * 434
    assert "one of 4" in plan["parts"]["optimizer state"]["description"]
    _, alone, _ = plan_json([*args, "--update.shard-optimizer"], capsys)
    assert alone["parts"]["optimizer state"]["bytes"] == 24_687_509_504 + 4 * 434


def test_plan_with_sharded_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gathered are embedding and last norm, 151,937 x 2048 numbers, and two layers of 77,076,992, in 2 bytes."""
    args = ["gsm8k-0.5b", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "64"]
    status, plan, _ = plan_json([*args, "--processes", "4", "--update.shard-weights"], capsys)
    assert status == 0
    sizes = {name: part["bytes"] for name, part in plan["parts"].items()}
    assert sizes["weights"] == 6_171_877_376
    assert sizes["gradients"] == sizes["master weights"] == 12_343_754_752 / 4
    assert sizes["optimizer state"] == 24_687_509_504 / 4 + 4 * 434
    assert sizes["gathered weights"] == 2 * (151_937 * 2048 + 2 * 77_076_992)
    assert plan["training_state"]["this recipe"]["total"] == QWEN_3B_PARAMETERS * (2 + 16 / 4)
    assert plan["host_bytes"] == 6_171_877_376 + 24_687_509_504 + 12_343_754_752 + 4 * 434
    _, alone, _ = plan_json([*args, "--update.shard-weights"], capsys)
    assert "gathered weights" not in alone["parts"]


def test_float32_copy_of_sharded_weights_counts_as_master_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "80", "--model.dtype", "float32"]
    _, plan, _ = plan_json(["gsm8k-0.5b", *args, "--processes", "4", "--update.shard-weights"], capsys)
    assert plan["parts"]["weights"]["bytes"] == 12_343_754_752
    assert plan["parts"]["master weights"]["bytes"] == 12_343_754_752 / 4
    saved = 12_343_754_752 + 24_687_509_504 + 4 * 434  # the weights themselves, and their moments
    assert plan["host_bytes"] == 12_343_754_752 + saved


def test_plan_of_several_processes_shards_before_it_takes_fewer_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["gsm8k-0.5b", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "48"]
    status, plan, _ = plan_json([*args, "--processes", "8"], capsys)
    assert status == 0
    assert plan["flags"][0] == "--update.shard-optimizer"
    assert "each of 8 processes" in plan["chosen"]["update.shard_optimizer"]["cost"]
    assert not [flag for flag in plan["flags"] if "optimizer-state" in flag]
    _, plan, _ = plan_json([*args[:-1], "20", "--processes", "8"], capsys)
    assert plan["flags"][0] == "--update.shard-weights"
    assert "each of 8 processes" in plan["chosen"]["update.shard_weights"]["cost"]
    _, plan, _ = plan_json([*args[:-1], "20", "--processes", "2"], capsys)
    assert plan["flags"][0] == "--update.optimizer-state 8-bit"


@pytest.mark.parametrize("option", [[], ["--update.shard-optimizer"], ["--update.shard-weights"]])
def test_what_several_processes_can_not_hold_is_told(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["gsm8k-0.5b", "--model.name", config_folder(tmp_path, QWEN_3B), "--vram", "10"]
    assert main(["plan", *args, "--processes", "4", *option]) == 3
    error = " ".join(capsys.readouterr().err.split())
    assert "there are 10.00 GB" in error
    assert "--adapter.rank 16" in error


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--update.optimizer-state", "8-bit"], "needs 32-bit state"),
        (["--model.dtype", "float16"], "in float16"),
        (["--adapter.rank", "8"], "an adapter is small"),
    ],
)
def test_what_sharded_weights_can_not_do(
    options: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model.dtype", "bfloat16", "--update.shard-weights", *options]) == 2
    assert what in capsys.readouterr().err


def test_8_bit_state_is_not_sharded(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--update.shard-optimizer", "--update.optimizer-state", "8-bit", "--model.dtype", "bfloat16"]
    assert main(["plan", *options]) == 2
    assert "blocks of 8-bit state" in capsys.readouterr().err


def test_scores_count_where_attention_may_be_written_out() -> None:
    """On a card in float16: up to four tensors of 2^26 float32 scores (models/varlen.py); none in bfloat16."""
    sizes = {}
    for dtype in ("float16", "bfloat16"):
        planned = plan_unchanged(
            load_config("quickstart", {"model.dtype": dtype, "update.micro_batch_tokens": 700}), 16
        )
        (sizes[dtype],) = (part.bytes for part in planned.parts if part.name == "largest temporary")
    assert sizes["float16"] > 4 * 4 * 2**26 > sizes["bfloat16"]


def test_too_little_memory_for_offloaded_moments_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["gsm8k-3b-24gb", "--model.name", config_folder(tmp_path, QWEN_3B), "--update.offload-optimizer"]
    status, _, err = plan_json([*args, "--vram", "12"], capsys)
    assert status == 3
    option = "--adapter.rank 16 --update.optimizer-state 32-bit --update.no-offload-optimizer"
    assert option in " ".join(err.split())
    assert main(["plan", *args[:-1], *option.split(), "--vram", "12"]) == 0
    plan = plan_unchanged(load_config(args[0], {"model.name": args[2], "update.offload_optimizer": True}), 80)
    with pytest.raises(DoesNotFitError, match="offloaded moments and saving the model take 14") as refused:
        check_fits(replace(plan, target=replace(plan.target, host_memory=9 * 10**9)))
    assert "leave out --update.offload-optimizer" in refused.value.remedy


@pytest.mark.parametrize("more", [["--update.optimizer-state", "16-bit"], ["--model.device", "cpu"]])
def test_only_8_bit_moments_of_a_gpu_can_be_offloaded(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["gsm8k-3b-24gb", "--model.name", config_folder(tmp_path, QWEN_3B), "--update.offload-optimizer"]
    assert main(["plan", *args, *more]) == 2
    assert "update.offload_optimizer" in capsys.readouterr().err


def test_plan_for_this_card_takes_what_other_programs_leave(capsys: pytest.CaptureFixture[str]) -> None:
    """The half GB that this process's CUDA takes is in the plan, so it counts as free."""
    with FakeCuda(free=500_000_000):
        status, plan, err = plan_json(["quickstart"], capsys)
        assert (status, plan["memory_bytes"], plan["gpu_bytes"]) == (3, 1_000_000_000, 80_000_000_000)
        assert "there are 1.00 GB free of 80.00 GB" in err
    with FakeCuda(free=9_500_000_000):
        assert main(["plan", "quickstart"]) == 0
        assert "fits into 10.00 GB free of 80.00 GB, with the recipe unchanged" in capsys.readouterr().out
    with FakeCuda():
        assert plan_json(["quickstart"], capsys)[1]["memory_bytes"] == 80_000_000_000


def test_free_memory_does_not_change_how_many_sequences_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Completions depend on the seed and the machine alone, by rounding too; the engine sees the whole card."""
    caches = []
    for free in (80 * 10**9, 2 * 10**9):
        with FakeCuda(free):
            config = load_config("quickstart", {"rollout.prompts_per_step": 400})
            caches.append(next(p.bytes for p in plan_unchanged(config).parts if p.name == "KV cache"))
    assert caches[0] == caches[1]


def test_a_machine_through_which_the_model_does_not_pass_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """6.2 GB of weights are saved in files of 5 GB; those of an adapter are merged in one piece."""
    model = ["--model.name", config_folder(tmp_path, QWEN_3B), "--model.dtype", "bfloat16"]
    for recipe, needed in (("gsm8k-3b-48gb", 5_000_000_000), ("gsm8k-3b-12gb", 6_171_877_376)):
        for there in (needed, needed - 1):
            monkeypatch.setattr(memory, "installed_bytes", lambda there=there: there)
            with FakeCuda():
                status, plan, err = plan_json([recipe, *model], capsys)
            assert plan["host_bytes"] == needed
            assert (status, "GB of the machine's own memory" in err) == ((0, False), (3, True))[
                there < needed
            ]
    monkeypatch.setattr(memory, "installed_bytes", lambda: 4 * 10**9)
    assert plan_json(["gsm8k-3b-48gb", *model, "--vram", "48"], capsys)[0] == 0  # it is another machine's


def test_train_refuses_before_a_weight_is_loaded(
    tmp_path: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's folder holds no weights."""
    monkeypatch.setattr(memory, "installed_bytes", lambda: 40 * 10**9)
    args = ["train", "gsm8k-0.5b", "--model.name", config_folder(tmp_path, QWEN_3B), "--model.device", "cpu"]
    args += ["--model.dtype", "bfloat16"]
    assert main([*args, "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "does not fit into 40.00 GB" in err
    assert "it fits with --update.optimizer-state 8-bit" in err
    monkeypatch.setattr(memory, "installed_bytes", lambda: 4 * 10**9)
    assert main(args) == 3
    assert "what would fit: " in capsys.readouterr().err


def test_16_bit_state_needs_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--update.optimizer-state", "16-bit", "--model.dtype", "float32"]) == 2
    assert "update.optimizer_state 16-bit needs bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["16-bit", "8-bit"])
def test_float16_needs_32_bit_state(capsys: pytest.CaptureFixture[str], state: str) -> None:
    assert main(["plan", "--update.optimizer-state", state, "--model.dtype", "float16"]) == 2
    err = capsys.readouterr().err
    assert f"optimizer_state {state} does not go with float16" in err
    assert "--update.optimizer-state 32-bit" in err


def test_a_float16_plan_that_does_not_fit_keeps_32_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 18 bytes for each of 3,085,938,688 parameters nothing else helps: it names what would."""
    model = config_folder(tmp_path, QWEN_3B)
    assert main(["plan", "--model.name", model, "--model.dtype", "float16", "--vram", "24"]) == 3
    err = capsys.readouterr().err
    assert "8-bit" not in err
    assert "--adapter.rank" in err


@pytest.mark.case(29)
def test_plan_does_not_run_the_task(
    in_tmp: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_tmp / "my_task.py").write_text(TASK_THAT_MUST_NOT_RUN)
    (in_tmp / "mine.toml").write_text(f'[model]\nname = "{model_folder}"\n[task]\nname = "./my_task.py"\n')
    status, plan, _ = plan_json(["mine.toml"], capsys)
    assert status == 0
    assert plan["recipe"] == "mine"
    assert not (in_tmp / "it_ran").exists()
    assert not (in_tmp / "runs").exists()


def test_plan_for_a_gpu_that_is_not_in_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Its dtype can't be queried: bfloat16; the quickstart fits unchanged."""
    assert main(["plan", "--vram", "24"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("smollm2-135m in bfloat16 on cuda: 134,515,008 parameters")
    assert "fits into 24.00 GB, with the recipe unchanged" in out


def test_plan_wraps_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the verdict, whose options are there to be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", "--vram", "1", "--model.dtype", "float32"]) == 3
    *lines, verdict = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert verdict.startswith("does not fit into 1.00 GB with --update.")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--vram", "0"], "a GPU can't have 0 GB"),
        (["--vram", "nan"], "a GPU can't have nan GB"),
        (["--processes", "0"], "0 processes can't train"),
        (["--processes", "-3"], "-3 processes can't train"),
        (["--model.name", "no/such/model"], "can't load the model 'no/such/model'"),
        (["nothere"], "there is no recipe 'nothere'"),
    ],
)
def test_plan_with_bad_arguments_exits_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *args]) == 2
    assert message in capsys.readouterr().err


def test_cost_of_a_smaller_micro_batch() -> None:
    """Of 45,056 tokens a step: 16 micro-batches instead of 3 repeat 13 prompts of 512 tokens."""
    recipe = load_config("gsm8k-0.5b")
    shape = shape_of(make_model(), 64)
    target = Target("cuda", torch.bfloat16, 10**9)
    smaller = override_config(recipe, {"update.micro_batch_tokens": 2816})
    cost = choice_costs(Plan(smaller, recipe, shape, target))["update.micro_batch_tokens"]
    assert "up to 16 micro-batches per step instead of 3" in cost
    assert "up to 15% more tokens" in cost


def quickstart_plan(memory_bytes: int) -> Plan:
    """The quickstart on a CPU in float32, where it needs 5.8 GB."""
    config = load_config("quickstart")
    shape = read_shape(config.model.name, False, config.max_sequence_tokens)
    return Plan(config, config, shape, Target("cpu", torch.float32, memory_bytes))


@pytest.mark.case(13)
@pytest.mark.parametrize(
    ("usable", "flags", "said"),
    [
        (3_900_000_000, ["micro-batch-tokens"], "Other programs take the rest"),
        (8_000_000_000, ["activation-checkpointing"], "the plan counts too little"),
        (None, ["activation-checkpointing"], "the plan counts too little"),
        (1_000_000_000, ["optimizer-state 8-bit", "activation-checkpointing"], "Other programs take"),
    ],
)
def test_a_plan_after_oom_is_for_what_is_usable_now(
    usable: int | None,
    flags: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is smaller than the recipe even where the recipe would fit, and never says that it does."""
    monkeypatch.setattr("reinforce_lite.cli.plan_table.usable_bytes", lambda device: usable)
    plan = quickstart_plan(16 * 10**9)
    assert plan.fits
    after = plan_after_oom(plan, usable)
    assert after.total < plan.total
    assert after.target.memory == usable
    show_plan_after_oom(plan)
    verdict = capsys.readouterr().err.splitlines()[-1]
    assert all(flag in verdict for flag in flags)
    assert said in verdict
    assert usable is None or f"{usable / 1e9:.2f} GB are usable now" in verdict
    assert "fits into" not in verdict


def test_a_recipe_that_was_refused_is_shown_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan_after_oom(quickstart_plan(10**9))
    assert "does not fit into 1.00 GB" in capsys.readouterr().err
