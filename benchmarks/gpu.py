"""What a GPU reaches, in under ten minutes, with a 3B model with random weights.

python benchmarks/gpu.py           # on the GPU
python benchmarks/gpu.py --tiny    # a tiny model, on a CPU too: tries the benchmark itself

decode    tokens per second at several batch sizes, and the share of the floor that the GPU's bandwidth and
          matrix products set: t >= max((weights + cache read) / bandwidth, 2 x parameters x batch / peak)
update    tokens per second, and the share of the peak that a large product reaches here
step      16 questions x 10 completions, forced to their full length, with the optimizer step (45 GB by the
          plan)
article   the first implementation's loop, one question at a time: ten completions without a cache, the
          gradient of one
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from common import Figures, random_groups, ratio, run, timed
from transformers import AutoModelForCausalLM, Qwen2Config

from reinforce_lite.config import UpdateConfig
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.device import pick_device
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Group, Sampling

QWEN_3B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {
    "vocab_size": 40_000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
PROMPT = 100
SEED = 0
LOGIT_SPREAD = 7.0
"""The logits' standard deviation, which makes a nucleus as narrow as a trained model's. The logits of random
weights are so flat that the sampler would sort the vocabulary in every step."""
UPDATE = UpdateConfig(optimizer_state="16-bit", micro_batch_tokens=8192)
"""The article's optimizer state. By the plan, 32-bit state with default micro-batches would take 95 GB."""


class NoTokenizer:
    """In place of a tokenizer: nobody reads these completions."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """No tokens."""
        return {"input_ids": []}

    def decode(self, ids: Any, **_: Any) -> str:
        """No text."""
        return ""


def build(arguments: argparse.Namespace) -> Policy:
    """The model with random weights."""
    torch.manual_seed(SEED)
    with torch.device(pick_device("auto")):
        shape = Qwen2Config(**(TINY if arguments.tiny else QWEN_3B))
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).eval()
    gain = LOGIT_SPREAD / (shape.initializer_range * math.sqrt(shape.hidden_size))
    torch.nn.init.constant_(model.base_model.norm.weight, gain)
    model.requires_grad_(True)
    return Policy(model, NoTokenizer(), frozenset({0}), "random", llama=Llama(model))


def length(arguments: argparse.Namespace) -> int:
    """Tokens per completion."""
    return 4 if arguments.tiny else 250


def synchronize(policy: Policy) -> None:
    """Wait for the GPU."""
    if policy.device.type == "cuda":
        torch.cuda.synchronize()


def seconds(policy: Policy, job: Callable[[], Any], times: int = 2) -> float:
    """The median time of a job, synchronization included."""

    def synchronized() -> None:
        job()
        synchronize(policy)

    return timed(synchronized, times)


def bandwidth(policy: Policy, tiny: bool) -> float:
    """Bytes per second read and written by a copy."""
    source = torch.randn(2**20 if tiny else 2**30, dtype=torch.bfloat16, device=policy.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(policy, lambda: target.copy_(source), 5)


def peak(policy: Policy, tiny: bool) -> float:
    """Floating-point operations per second of one large product.

    Of random numbers: with ones, a GPU draws less power and runs faster than it ever does in a model.
    """
    n = 256 if tiny else 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=policy.device) for _ in range(2))
    return 2 * n**3 / seconds(policy, lambda: a @ b, 5)


def parameters(policy: Policy) -> int:
    """How many."""
    return sum(p.numel() for p in policy.model.parameters())


def groups(questions: int, samples: int, length: int) -> list[Group]:
    """Groups of random tokens."""
    return random_groups(questions, samples, PROMPT, length)


@torch.no_grad()
def decode(arguments: argparse.Namespace) -> Figures:
    """The native engine at several batch sizes."""
    policy, new = build(arguments), length(arguments)
    assert policy.llama is not None
    engine = NativeEngine(policy)
    n, c = parameters(policy), policy.model.config
    token_bytes = 4 * c.num_hidden_layers * c.num_key_value_heads * policy.llama.head_size
    bytes_per_second, flops = bandwidth(policy, arguments.tiny), peak(policy, arguments.tiny)
    figures: Figures = {"bandwidth_gb_s": bytes_per_second / 1e9, "peak_tflops": flops / 1e12}
    for batch in (8,) if arguments.tiny else (32, 64, 128, 256):
        asked = [g.prompt for g in groups(max(1, batch // 16), 1, 1)]
        sampling = Sampling(batch // len(asked), new, new, temperature=0.7, top_p=0.9)
        spent = seconds(policy, lambda asked=asked, s=sampling: engine.generate(asked, s, SEED), 1)
        cached = len(asked) * PROMPT + batch * new / 2  # a prompt is read once for all its completions
        floor = new * max((2 * n + cached * token_bytes) / bytes_per_second, 2 * n * batch / flops)
        figures[f"tokens_per_second_{batch}"] = batch * new / spent
        figures[f"of_floor_{batch}"] = floor / spent
    return figures


def update(arguments: argparse.Namespace) -> Figures:
    """Forward and backward passes."""
    policy, new = build(arguments), length(arguments)
    updater = Updater(policy, UPDATE, 0.7, 0)
    asked = groups(2, 10, new)
    weights = torch.linspace(-1, 1, 20, dtype=torch.float64).view(2, 10) / new
    tokens = updater.compute_gradient(asked, weights).tokens
    spent = seconds(policy, lambda: updater.compute_gradient(asked, weights))
    flops = 6 * parameters(policy) * tokens / spent
    return {"tokens_per_second": tokens / spent, "of_peak": flops / peak(policy, arguments.tiny)}


def step(arguments: argparse.Namespace) -> Figures:
    """Rollout, gradient and optimizer step."""
    policy, new = build(arguments), length(arguments)
    questions = 1 if arguments.tiny else 16
    asked = groups(questions, 10, new)
    engine, updater = NativeEngine(policy), Updater(policy, UPDATE, 0.7, 0)
    sampling = Sampling(10, new, new, temperature=0.7, top_p=0.9)
    weights = torch.linspace(-1, 1, 10, dtype=torch.float64).expand(questions, 10) / (10 * questions * new)
    laps = {"rollout": 0.0, "update": 0.0}
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        engine.generate([g.prompt for g in asked], sampling, SEED)
        synchronize(policy)
        middle = time.perf_counter()
        assert updater.apply_gradient(updater.compute_gradient(asked, weights), 1)
        synchronize(policy)
        laps = {"rollout": middle - start, "update": time.perf_counter() - middle}
    total = sum(laps.values())
    return {**laps, "seconds": total, "seconds_per_completion": total / (10 * questions)}


def article(arguments: argparse.Namespace) -> Figures:
    """One question: ten completions without a cache, the plain gradient of one of them."""
    policy, new = build(arguments), length(arguments)
    model = policy.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    (group,) = groups(1, 10, new)
    prompt = torch.tensor([group.prompt.token_ids], device=policy.device)

    def job() -> None:
        ids = prompt.expand(10, -1)
        with torch.no_grad():
            for _ in range(new):
                logits = model(ids, use_cache=False).logits[:, -1].float() / 0.7
                p, order = logits.softmax(-1).sort(descending=True)
                p = p * ((p.cumsum(-1) - p) < 0.9)
                ids = torch.cat([ids, order.gather(1, p.multinomial(1))], dim=1)
        logprobs = model(ids[:1, :-1], use_cache=False).logits.log_softmax(-1)
        chosen = logprobs.gather(2, ids[:1, 1:, None])[:, PROMPT - 1 :]
        (-chosen.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    spent = seconds(policy, job, 1)
    return {"seconds": spent, "seconds_per_completion": spent / 10}


if __name__ == "__main__":
    run(
        "gpu",
        {"decode": decode, "update": update, "step": step, "article": article},
        lambda results: [ratio(results, "article", "step", "seconds_per_completion")],
        flags=("tiny",),
    )
