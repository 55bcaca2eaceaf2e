"""The program on an emulated graphics card: no mixed devices, no needless waits, the CPU's results."""

# mypy: allow-untyped-calls

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from helpers.fake_cuda import CUDA, FakeCuda
from helpers.groups import make_groups, make_weights, save_wide
from helpers.model_configs import LONGROPE_CONTEXT, QWEN_3B, make_family
from helpers.paths import RECIPE
from helpers.plain import BRANCHES
from helpers.static import make_decoder
from helpers.tiny import ToyTask, make_tokenizer
from reinforce_lite import api
from reinforce_lite.config import UpdateConfig
from reinforce_lite.engines.hf import HFEngine
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.engines.oom_retry import OOMRetryEngine
from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.learner.optimizers import AdamW
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import PrefixTree
from reinforce_lite.types import Completion, Prompt, Sampling

PROMPTS = [Prompt((1, 40, 41, 42)), Prompt((1, 99)), Prompt((1, 70, 71, 72, 73, 74, 75, 76))]
NARROW = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 16,
    "head_dim": 8,
    "vocab_size": 259,
}
LAUNCHES_OF_A_LAYER, LAUNCHES = 11, 450


def test_operands_on_two_devices_are_refused() -> None:
    with FakeCuda():
        on_card = torch.zeros(3, device="cuda")
        assert (on_card.device, (on_card + 1)[1:].device) == (CUDA, CUDA)
        assert on_card.cpu().device.type == "cpu"
        assert (on_card + torch.tensor(1.0)).device == CUDA  # as on a card, a CPU's scalar is no tensor
        with pytest.raises(RuntimeError, match=r"add.*\(3,\)"):
            on_card + torch.zeros(3)
        with pytest.raises(TypeError):
            on_card.numpy()
        with pytest.raises(AssertionError, match="fake card"):
            torch.cuda.init()


def test_a_backward_pass_stays_on_the_card() -> None:
    with FakeCuda():
        weight = torch.nn.Parameter(torch.ones(3))
        weight.data = weight.data.to("cuda")
        (weight * weight).sum().backward()
        assert weight.grad is not None
        assert weight.grad.device == CUDA
        assert weight.grad.tolist() == [2, 2, 2]


def test_waits_are_counted() -> None:
    with FakeCuda() as card:
        x = torch.tensor([1.0, 2.0, 3.0], device="cuda")  # a copy to the card
        mask = x > 1
        x[:2] += x[torch.arange(2, device="cuda")] * x.mean()
        assert card.waits.total() == 1
        for number, job in enumerate(
            [
                lambda: float(x.sum()),
                lambda: bool(mask.any()),
                lambda: x[mask],
                lambda: x[[0, 2]],
                lambda: mask.nonzero(),
                x.tolist,
                x.cpu,
                lambda: x.repeat_interleave(mask.long()),
            ],
            start=2,
        ):
            job()
            assert card.waits.total() == number


def on_both(job: Any) -> tuple[Any, Any]:
    """What `job` returns for the CPU and for the emulated card."""
    expected = job("cpu")
    with FakeCuda():
        return expected, job("cuda")


@pytest.mark.parametrize("engine", [NativeEngine, HFEngine])
def test_completions_equal_the_cpus(engine: Any, model_folder: Path) -> None:
    """In float32: with a shared prefix, sequences that wait for others to end, and a minimum length."""

    def complete(device: str) -> list[list[Completion]]:
        policy = load_policy(str(model_folder), "float32", device)
        assert policy.device.type == device
        policy.eos_token_ids = frozenset(range(30))  # so that some end early
        sampling = Sampling(4, max_new_tokens=12, min_new_tokens=2, temperature=1.5, top_p=0.95)
        completions: list[list[Completion]] = engine(policy, 5).generate(PROMPTS, sampling, 3)
        return completions

    expected, found = (list(itertools.chain(*groups)) for groups in on_both(complete))
    assert len({len(c.token_ids) for c in expected}) > 1
    for a, b in zip(expected, found, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def update(policy: Policy, **config: Any) -> dict[str, Tensor]:
    """The gradients of one update, and the weights after it, on the CPU."""
    updater = Updater(policy, UpdateConfig(learning_rate=1e-3, **config), 0.7, 0)
    gradient = updater.compute_gradient(make_groups(), make_weights())
    gradients = {
        f"d/{name}": w.grad.cpu().clone() for name, w in updater.master_weights.items() if w.grad is not None
    }
    assert updater.apply_gradient(gradient, 1)
    return gradients | {name: w.detach().cpu() for name, w in updater.params.items()}


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    pairs = [(found[name].double(), expected[name].double()) for name in expected]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("modules", ["ours", "transformers"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_cpus(checkpointing: bool, modules: str, model_folder: Path) -> None:
    """In float32, and the weights after a step: in micro-batches with a prefix that all prompts share."""

    def compute(device: str) -> dict[str, Tensor]:
        policy = load_policy(str(model_folder), "float32", device)
        policy.llama = policy.llama if modules == "ours" else None
        return update(policy, micro_batch_tokens=24, activation_checkpointing=checkpointing)

    expected, found = on_both(compute)
    assert len(expected) > 20
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("state", ["32-bit", "16-bit", "8-bit"])
def test_bfloat16_updates_agree_with_the_cpus(state: Any, tmp_path: Path) -> None:
    """Up to the rounding of the products."""
    folder = save_wide(tmp_path)
    expected, found = on_both(
        lambda device: update(load_policy(folder, "bfloat16", device), optimizer_state=state)
    )
    assert relative_error(found, expected) < 0.05


def test_tree_attention_does_not_wait(model_folder: Path) -> None:
    with FakeCuda() as card:
        llama = load_policy(str(model_folder), "float32", "cuda").llama
        assert llama is not None
        tree = PrefixTree(BRANCHES, 3, llama.device)
        width = 2 * llama.kv_heads * llama.head_size
        qkv = torch.randn(len(tree.ids), llama.key_start + width).to("cuda").requires_grad_()
        prefix = torch.randn(3, width).to("cuda").requires_grad_()
        card.waits.clear()
        PrefixAttention(llama, tree, [prefix])(0, qkv).sum().backward()
        assert prefix.grad is not None
        assert prefix.grad.device == CUDA
        assert not card.waits


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.0, 1.0), (0.0, 1.0)])
def test_a_decoding_step_does_not_wait(temperature: float, top_p: float, model_folder: Path) -> None:
    """Sampling from a nucleus, from the whole distribution, and greedy; EOS forbidden at first."""
    with FakeCuda() as card:
        policy = load_policy(str(model_folder), "float32", "cuda")
        with torch.inference_mode():
            decoder = make_decoder(policy, Sampling(2, 9, 3, temperature, top_p))
            card.waits.clear()
            decoder.run(2)
            assert not card.waits
            assert decoder.lengths.tolist() == [3, 5, 1]


def test_a_decoding_step_of_longrope_does_not_wait(tmp_path: Path) -> None:
    make_family("phi3-long").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with FakeCuda() as card:
        policy = load_policy(str(tmp_path), "float32", "cuda", max_length=LONGROPE_CONTEXT)
        with torch.inference_mode():
            decoder = make_decoder(policy, Sampling(2, 9))
            card.waits.clear()
            decoder.run(2)
            assert not card.waits


def test_launches_of_a_decoding_step(tmp_path: Path) -> None:
    """Of a Qwen2.5-3B made narrow."""
    counts = {}
    for layers in (1, 36):
        config = Qwen2Config(**QWEN_3B | NARROW | {"num_hidden_layers": layers})
        folder = tmp_path / str(layers)
        Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        with FakeCuda() as card:
            policy = load_policy(str(folder), "bfloat16", "cuda")
            with torch.inference_mode():
                decoder = make_decoder(policy, Sampling(2, 9, 0, 0.7, 0.9))
                card.launches.clear()
                decoder.step()
        counts[layers] = card.launches.total()
    assert (counts[36] - counts[1]) / 35 <= LAUNCHES_OF_A_LAYER
    assert counts[36] <= LAUNCHES


def test_a_run_equals_the_cpus(settings: dict[str, Any]) -> None:
    """The whole program in float32: the dry run, training, checkpoints, evaluations, the saved model."""
    settings |= {"rollout.engine": "native", "train.steps": 2, "train.save_every": 1, "eval.n": 2}

    def train(device: str) -> list[tuple[str, float]]:
        run = api.train(RECIPE, settings | {"model.device": device}, task=ToyTask(), run=device, quiet=True)
        assert run.summary["device"].startswith(device)
        assert (run.path / "model" / "model.safetensors").exists()
        return [(line["completion"], line["reward"]) for line in run.read("rollouts")]

    expected, found = on_both(train)
    assert len(expected) == 2 * 5 * 4
    assert found == expected


def spread(last: int) -> list[int]:
    """The first, some and the last of the allocations of a job."""
    return sorted({1, *range(last // 4, last, max(1, last // 4)), last})


def test_completions_are_the_same_after_memory_ran_out(model_folder: Path) -> None:
    """Greedy as in an evaluation, and drawn: at several tensors of the rollout."""
    for sampling in (Sampling(4, 6, temperature=0), Sampling(4, 6, top_p=0.9)):
        with FakeCuda() as card:
            engine = OOMRetryEngine(NativeEngine(load_policy(str(model_folder), "float32", "cuda")))
            start = card.allocations
            expected = engine.generate(PROMPTS, sampling, 0)
            for n in spread(card.allocations - start):
                engine.max_num_seqs, card.fails_at = 256, card.allocations + n
                found = engine.generate(PROMPTS, sampling, 0)
                assert engine.max_num_seqs == 6, f"no retry at tensor {n}"  # of twelve
                assert [[c.token_ids for c in g] for g in found] == [
                    [c.token_ids for c in g] for g in expected
                ]


@pytest.mark.parametrize("state", ["32-bit", "8-bit"])
def test_a_gradient_is_the_same_after_memory_ran_out(state: Any, tmp_path: Path) -> None:
    """At several tensors of forward and backward passes; none of the failed try's gradients is left."""
    with FakeCuda() as card:
        policy = load_policy(save_wide(tmp_path), "bfloat16", "cuda", keep_float32=state == "32-bit")
        updater = Updater(policy, UpdateConfig(optimizer_state=state, micro_batch_tokens=200), 0.7, 0)

        def gradients() -> dict[str, Tensor]:
            updater.micro_batch_tokens = 200
            updater.compute_gradient(make_groups(), make_weights())
            return {n: w.grad.cpu() for n, w in updater.master_weights.items() if w.grad is not None}

        start = card.allocations
        expected = gradients()
        for n in spread(card.allocations - start - len(expected)):  # the last are the copies to the host
            card.fails_at = card.allocations + n
            found = gradients()
            assert updater.micro_batch_tokens < 200, f"no retry at tensor {n}"
            assert relative_error(found, expected) < 0.02  # smaller pieces are summed in bfloat16


def test_a_run_resumes_after_memory_ran_out_in_the_optimizer(settings: dict[str, Any]) -> None:
    """The step is not done in part: what is saved is the step before, and the resume equals a straight run."""
    settings |= {"rollout.engine": "native", "train.steps": 2, "train.save_every": 1, "eval.n": 2}
    settings |= {"model.device": "cuda"}

    def train(run: str, resume: bool = False) -> list[tuple[str, float]]:
        done = api.train(RECIPE, settings, task=ToyTask(), run=run, quiet=True, resume=resume)
        return [(line["completion"], line["reward"]) for line in done.read("rollouts")]

    step = AdamW.step
    with FakeCuda() as card, pytest.MonkeyPatch.context() as patch:

        def full(optimizer: AdamW, learning_rate: float, seed: int) -> None:
            if optimizer.optimizer.state and learning_rate > 0 and not card.fails_at:
                card.fails_at = card.allocations + 2
            step(optimizer, learning_rate, seed)

        expected = train("straight")
        patch.setattr(AdamW, "step", full)
        with pytest.raises(DoesNotFitError, match="CUDA out of memory") as caught:
            train("cut")
        assert "step 1 is saved" in caught.value.remedy
        assert train("cut", resume=True) == expected
