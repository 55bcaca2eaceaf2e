"""A step's answers: our decoder, transformers' generate, vLLM where installed, and the floor.

python benchmarks/rollout.py

8 questions of the quickstart, 8 answers each, every one forced to 64 tokens, temperature 0.7, top-p 0.9.
The floor is the time of the matrix products alone that a decoder can't do without: the worked examples
once, each prompt once, and 64 steps of 64 rows. The lower floor has the weights of these steps laid out
once, as our decoder does.
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


def rate(seconds: float, answers: int) -> Figures:
    return {"seconds": seconds, "tokens_per_second": answers * SAMPLING.max_new_tokens / seconds}


def native(arguments: argparse.Namespace) -> Figures:
    built = pipeline(arguments)
    asked = prompts(built)
    return rate(timed(lambda: built.engine.generate(asked, SAMPLING, 0)), 8 * len(asked))


def floor(arguments: argparse.Namespace, packing: bool = False) -> Figures:
    built = pipeline(arguments)
    asked, llama = [p.token_ids for p in prompts(built)], built.policy.llama
    assert llama is not None
    shared, rows = common_prefix_length(asked), len(asked) * SAMPLING.samples

    linear = make_linear(llama, rows) if packing else plain

    @torch.inference_mode()
    def job() -> None:
        products(llama, shared, 0)
        products(llama, sum(map(len, asked)) - shared * len(asked), rows)
        for _ in range(SAMPLING.max_new_tokens - 1):
            products(llama, rows, rows, linear)

    return rate(timed(job), rows)


def generate(arguments: argparse.Namespace) -> Figures:
    """As most people would call it: one padded batch."""
    built = pipeline(arguments, ours=False)
    tokenizer, model = built.policy.tokenizer, built.policy.model
    rows = [list(p.token_ids) for p in prompts(built) for _ in range(SAMPLING.samples)]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")

    def job() -> None:
        made = model.generate(
            **batch,
            do_sample=True,
            temperature=SAMPLING.temperature,
            top_p=SAMPLING.top_p,
            top_k=0,
            min_new_tokens=SAMPLING.min_new_tokens,
            max_new_tokens=SAMPLING.max_new_tokens,
        )
        assert made.shape[1] == batch["input_ids"].shape[1] + SAMPLING.max_new_tokens

    return rate(timed(job, times=1), len(rows))


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
        how = SamplingParams(
            n=SAMPLING.samples,
            temperature=SAMPLING.temperature,
            top_p=SAMPLING.top_p,
            max_tokens=SAMPLING.max_new_tokens,
            min_tokens=SAMPLING.min_new_tokens,
            ignore_eos=True,
        )
        lengths: Counter[int] = Counter()

        def job() -> None:
            made = engine.generate(asked, how, use_tqdm=False)
            lengths.update(len(answer.token_ids) for request in made for answer in request.outputs)

        figures = rate(timed(job), 8 * len(asked))
        assert set(lengths) == {SAMPLING.max_new_tokens}
        return figures


if __name__ == "__main__":
    run(
        "rollout",
        {
            "floor": floor,
            "lower_floor": lambda a: floor(a, packing=True),
            "native": native,
            "generate": generate,
            "vllm": vllm,
        },
        lambda found: [
            ratio(found, "generate", "native"),
            ratio(found, "vllm", "native"),
            ratio(found, "floor", "native") + " (its share of the floor)",
            ratio(found, "lower_floor", "native") + " (its share of the lower floor)",
        ],
    )
