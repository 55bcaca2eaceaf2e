"""What the parts share: a model with random weights, its inputs, timing, and where figures go."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from reinforce_lite.config import UpdateConfig
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Sampling, Verdict

TINY = bool(os.environ.get("TINY"))
OUT = Path(os.environ.get("OUT", "."))
PART = os.environ.get("PART", "")
"""What this process runs, with its arguments."""
LIMIT = float(os.environ.get("LIMIT", "inf"))
"""The seconds that it may take. `gpu.py` sets the four."""
RESULTS = "results.jsonl"
"""In OUT: a line for each set of figures."""
QWEN_3B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
}
SMALL: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SHAPE = SMALL if TINY else QWEN_3B
VOCABULARY = 4096 if TINY else 40_000
TEMPERATURE, TOP_P = 0.7, 0.9
LOGIT_SPREAD = 7.0
"""The logits' standard deviation, which makes a nucleus as narrow as a trained model's. The logits of random
weights are so flat that the sampler would sort the vocabulary in every step."""
PROMPT = 150
SAMPLES = 10
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def report(**figures: Any) -> None:
    """Print and append a line of figures. Parts may run concurrently: a line is one write."""
    line = json.dumps({"part": PART, **figures}, default=str)
    print(line, flush=True)
    with output(RESULTS).open("a") as file:
        file.write(line + "\n")


def output(name: str) -> Path:
    """A file in the folder of the figures."""
    return OUT / name


def synchronize() -> None:
    """Wait for the GPU."""
    if CUDA:
        torch.cuda.synchronize()


def seconds(job: Callable[[], Any], times: int = 5, warmup: int = 2) -> float:
    """The median time of a job."""
    for _ in range(warmup):
        job()
    synchronize()
    laps = []
    for _ in range(times):
        start = time.perf_counter()
        job()
        synchronize()
        laps.append(time.perf_counter() - start)
    return sorted(laps)[len(laps) // 2]


class NoTokenizer:
    """In place of a tokenizer: nobody reads these completions."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """No tokens."""
        return {"input_ids": []}

    def decode(self, ids: Any, **_: Any) -> str:
        """No text."""
        return ""


def build_model(
    shape: dict[str, Any],
    dtype: str = "bfloat16",
    key_bias: float = 0.0,
    device: torch.device = DEVICE,
    logit_spread: float = LOGIT_SPREAD,
) -> Any:
    """A model with random weights. `key_bias` makes scores as large as Qwen2.5's."""
    torch.manual_seed(0)
    config = Qwen2Config(**shape)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    gain = logit_spread / (config.initializer_range * math.sqrt(config.hidden_size))
    torch.nn.init.constant_(model.model.norm.weight, gain)
    with torch.no_grad():
        for layer in model.model.layers[:2] if key_bias else ():
            for bias in (layer.self_attn.k_proj.bias, layer.self_attn.q_proj.bias):
                bias.normal_(0, key_bias)
    return model.requires_grad_(True)


def as_policy(model: Any, fused: bool = True) -> Policy:
    """The model as a policy; `fused` uses the program's forward pass, otherwise transformers' modules."""

    eos = frozenset({model.config.vocab_size - 1})
    return Policy(model, NoTokenizer(), eos, "random", llama=Llama(model) if fused else None)


def build(shape: dict[str, Any], key_bias: float = 0.0) -> Policy:
    """A bfloat16 policy with random weights."""
    return as_policy(build_model(shape, key_bias=key_bias))


def parameter_count(policy: Policy) -> int:
    """How many parameters a policy has."""
    return sum(p.numel() for p in policy.model.parameters())


def random_groups(
    questions: int, samples: int, prompt: int, length: int, vocabulary: int = VOCABULARY
) -> list[Group]:
    """Groups of random tokens; prompts differ in length by up to 6 tokens."""

    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, vocabulary - 10, (n,), generator=generator).tolist())

    def rollout() -> Rollout:
        completion = Completion(ids(length), "", truncated=True, logprobs=(0.0,) * length)
        return Rollout(completion, "", 0.0, Verdict(False, None, ""), None)

    return [
        Group(Problem(str(q), "", ""), Prompt(ids(prompt - q % 7)), tuple(rollout() for _ in range(samples)))
        for q in range(questions)
    ]


def prompts(questions: int) -> list[Prompt]:
    """Random prompts."""
    return [group.prompt for group in random_groups(questions, 1, PROMPT, 1)]


def sampling(samples: int, length: int, min_new_tokens: int = 0) -> Sampling:
    """How completions are drawn."""

    return Sampling(samples, length, min_new_tokens, TEMPERATURE, TOP_P)


def product_tflops() -> float:
    """The rate of a large product in bfloat16."""
    n = 256 if TINY else 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b) / 1e12


def build_updater(policy: Policy) -> Updater:
    """With 16-bit state: by the plan, 32-bit state with default micro-batches would take 95 GB."""
    return Updater(policy, UpdateConfig(optimizer_state="16-bit", micro_batch_tokens=8192), TEMPERATURE, 0)
