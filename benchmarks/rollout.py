"""A step's answers: our decoder, transformers' generate, vLLM where installed, and the floor.

python benchmarks/rollout.py

8 questions of the quickstart with 8 completions each, all forced to 64 tokens, temperature 0.7, top-p 0.9.
The floor is the time of the matrix products that no decoder can avoid: the worked examples once, each prompt
once, and 64 steps of 64 sequences. The lower floor packs the weights of these steps once, as the native
engine does.
"""

import argparse
import os
import tempfile
from collections import Counter

import torch
from common import Figures, installed, pipeline, products, prompts, ratio, run, saved, timed
from torch.nn.functional import linear as plain

from reinforce_lite.engines.packed_linear import make_linear
from reinforce_lite.models.forward import common_prefix_length
from reinforce_lite.types import Sampling

SAMPLING = Sampling(samples=8, max_new_tokens=64, min_new_tokens=64, temperature=0.7, top_p=0.9)


def rate(seconds: float, completions: int) -> Figures:
    """Seconds and tokens per second."""
    return {"seconds": seconds, "tokens_per_second": completions * SAMPLING.max_new_tokens / seconds}


def native(arguments: argparse.Namespace) -> Figures:
    """The native engine."""
    built = pipeline(arguments)
    asked = prompts(built)
    return rate(timed(lambda: built.engine.generate(asked, SAMPLING, 0)), 8 * len(asked))


def floor(arguments: argparse.Namespace, packed: bool = False) -> Figures:
    """The unavoidable matrix products alone."""
    built = pipeline(arguments)
    asked, llama = [p.token_ids for p in prompts(built)], built.policy.llama
    assert llama is not None
    shared, sequences = common_prefix_length(asked), len(asked) * SAMPLING.samples

    linear = make_linear(llama, sequences) if packed else plain

    @torch.inference_mode()
    def job() -> None:
        products(llama, shared, 0)
        products(llama, sum(map(len, asked)) - shared * len(asked), sequences)
        for _ in range(SAMPLING.max_new_tokens - 1):
            products(llama, sequences, sequences, linear)

    return rate(timed(job), sequences)


def generate(arguments: argparse.Namespace) -> Figures:
    """As most people would call it: one padded batch."""
    built = pipeline(arguments, ours=False)
    tokenizer, model = built.policy.tokenizer, built.policy.model
    sequences = [list(p.token_ids) for p in prompts(built) for _ in range(SAMPLING.samples)]
    batch = tokenizer.pad({"input_ids": sequences}, padding_side="left", return_tensors="pt")

    def job() -> None:
        ids = model.generate(
            **batch,
            do_sample=True,
            temperature=SAMPLING.temperature,
            top_p=SAMPLING.top_p,
            top_k=0,
            min_new_tokens=SAMPLING.min_new_tokens,
            max_new_tokens=SAMPLING.max_new_tokens,
        )
        assert ids.shape[1] == batch["input_ids"].shape[1] + SAMPLING.max_new_tokens

    return rate(timed(job, times=1), len(sequences))


def vllm(arguments: argparse.Namespace) -> Figures:
    """In process, with its prefix cache."""
    if not installed("vllm"):
        return {"skipped": "vllm is not installed"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2"}
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{(os.cpu_count() or 1) - 1}"
    with tempfile.TemporaryDirectory() as folder:
        built = pipeline(arguments, ours=False)
        asked = [{"prompt_token_ids": list(p.token_ids)} for p in prompts(built)]
        path = saved(built, folder)
        from vllm import LLM, SamplingParams

        engine = LLM(path, dtype=arguments.dtype, enforce_eager=True, max_model_len=1024)
        params = SamplingParams(
            n=SAMPLING.samples,
            temperature=SAMPLING.temperature,
            top_p=SAMPLING.top_p,
            max_tokens=SAMPLING.max_new_tokens,
            min_tokens=SAMPLING.min_new_tokens,
            ignore_eos=True,
        )
        lengths: Counter[int] = Counter()

        def job() -> None:
            requests = engine.generate(asked, params, use_tqdm=False)
            lengths.update(len(output.token_ids) for request in requests for output in request.outputs)

        figures = rate(timed(job), 8 * len(asked))
        assert set(lengths) == {SAMPLING.max_new_tokens}
        return figures


if __name__ == "__main__":
    run(
        "rollout",
        {
            "floor": floor,
            "lower_floor": lambda a: floor(a, packed=True),
            "native": native,
            "generate": generate,
            "vllm": vllm,
        },
        lambda results: [
            ratio(results, "generate", "native"),
            ratio(results, "vllm", "native"),
            ratio(results, "floor", "native") + " (its share of the floor)",
            ratio(results, "lower_floor", "native") + " (its share of the lower floor)",
        ],
    )
