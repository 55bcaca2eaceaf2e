"""Tokens per second of the rollout, and one decoding step."""

import tempfile
import time
from importlib.util import find_spec
from typing import Any

import torch
from card.shared import (
    CUDA,
    PROMPT,
    SAMPLES,
    SHAPE,
    TEMPERATURE,
    TINY,
    TOP_P,
    build,
    output,
    parameter_count,
    prompts,
    report,
    sampling,
    seconds,
    synchronize,
)
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config

from reinforce_lite.engines.ending import Ending
from reinforce_lite.engines.hf import HFEngine
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.engines.sequence import start_sequences
from reinforce_lite.engines.static_scheduler import StaticScheduler


def decode() -> None:
    """Tokens per second of whole calls at several batch sizes, against the floor."""

    policy = build(SHAPE)
    engine = NativeEngine(policy, 256)
    new = 8 if TINY else 96
    for sequences in (8,) if TINY else (32, 160, 256):
        asked = prompts(max(1, sequences // SAMPLES))
        how = sampling(sequences // len(asked), new)
        batch = len(asked) * how.samples
        engine.generate(asked, how, 0)
        synchronize()
        start = time.perf_counter()
        lengths = [len(c.token_ids) for group in engine.generate(asked, how, 0) for c in group]
        synchronize()
        spent, steps = time.perf_counter() - start, max(lengths)
        floor = steps * _decode_floor(policy, len(asked), batch, new / 2)
        report(
            sequences=batch,
            tokens_per_second=sum(lengths) / spent,
            milliseconds_per_step=1e3 * spent / steps,
            floor_ms=1e3 * floor / steps,
            of_floor=floor / spent,
        )


@torch.inference_mode()
def graph(*sizes: str) -> None:
    """One decoding step of this many sequences at half length: captured, eager, and by the profiler."""

    policy, width = build(SHAPE), 96 if TINY else 250
    engine = NativeEngine(policy)
    for sequences in (8,) if TINY else tuple(map(int, sizes)) or (160, 32, 250):
        asked = prompts(max(1, sequences // SAMPLES))
        how = sampling(sequences // len(asked), width)
        start = time.perf_counter()
        decoder = engine._static_decoder([p.token_ids for p in asked], how)
        synchronize()
        capture_seconds = time.perf_counter() - start  # the first compiles kernels
        start = time.perf_counter()
        ending = Ending(frozenset(), policy.decode)
        StaticScheduler(decoder, start_sequences(asked, how, 0), 0, ending)._admit()
        synchronize()
        prefill_seconds = time.perf_counter() - start
        decoder.run(width // 2)
        floor = _decode_floor(policy, len(asked), decoder.size.rows, float(decoder.lengths.float().mean()))
        step_seconds = seconds(lambda d=decoder: d.run(4), 3) / 4
        report(
            sequences=decoder.size.rows,
            tokens=float(decoder.lengths.float().mean()),
            captured=decoder.graph is not None,
            capture_seconds=capture_seconds,
            prefill_seconds=prefill_seconds,
            milliseconds_per_step=1e3 * step_seconds,
            floor_ms=1e3 * floor,
            of_floor=floor / step_seconds,
            eager_ms=1e3 * seconds(decoder.step, 3, 1),
            idle_rows=int(decoder.done.sum()),
            wide_rows=int(decoder.wide.sum()),
        )
        _profile_steps(decoder, f"graph-{sequences}")


def _decode_floor(policy: Any, asked: int, sequences: int, tokens: float) -> float:
    """Seconds that a step takes to read all weights and keys once, or to multiply, whichever is longer."""
    n = parameter_count(policy)
    bandwidth, peak = (1e10, 1e11) if TINY else (2.9e12, 7.5e14)  # of an H100; smoke measures them
    token_bytes = 4 * SHAPE["num_hidden_layers"] * SHAPE["num_key_value_heads"] * policy.llama.head_size
    cached = (asked * PROMPT + sequences * tokens) * token_bytes
    return max((2 * n + cached) / bandwidth, 2 * n * sequences / peak)


def _profile_steps(decoder: Any, name: str, steps: int = 4) -> None:
    """Launches, waits and the longest kernels of a step; one wait is for the last one."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]) as profiler:
        decoder.run(steps)
        synchronize()
    events = profiler.key_averages()
    kernels = sorted((e for e in events if _device_us(e)), key=_device_us, reverse=True)
    report(
        profiled=name,
        gpu_busy_ms=sum(map(_device_us, events)) / 1e3 / steps,
        kernels_per_step=sum(e.count for e in kernels) / steps,
        launches_per_step=sum(e.count for e in events if "Launch" in e.key) / steps,
        waits_per_step=sum(e.count for e in events if "Synchronize" in e.key) / steps,
    )
    for kernel in kernels[:25]:
        us = _device_us(kernel) / steps
        report(kernel=kernel.key[:90], us_per_step=round(us, 1), times=kernel.count / steps)
    order = "self_cuda_time_total" if CUDA else "self_cpu_time_total"
    output(f"profile-{name}.txt").write_text(events.table(sort_by=order, row_limit=60))


def _device_us(event: Any) -> float:
    return float(getattr(event, "self_device_time_total", 0))


def vllm() -> None:
    """vLLM with the same shape and random weights, where it is installed."""
    if find_spec("vllm") is None:
        report(skipped="vLLM is not installed")
        return
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        Qwen2Config(architectures=["Qwen2ForCausalLM"], **SHAPE).save_pretrained(folder)
        engine = LLM(folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", seed=0)
        length = 4 if TINY else 250
        how = SamplingParams(
            n=SAMPLES,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_tokens=length,
            ignore_eos=True,
            detokenize=False,
        )
        asked = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts(16)]
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            done = engine.generate(asked, how, use_tqdm=False)
            spent = time.perf_counter() - start
    tokens = sum(len(o.token_ids) for request in done for o in request.outputs)
    report(
        sequences=16 * SAMPLES, tokens_per_second=tokens / spent, milliseconds_per_step=1e3 * spent / length
    )


def generate() -> None:
    """transformers' generate."""

    engine, length = HFEngine(build(SHAPE), 160), 4 if TINY else 64
    asked = prompts(16)
    start = time.perf_counter()
    completions = engine.generate(asked, sampling(SAMPLES, length, length), 0)
    synchronize()
    tokens = sum(len(c.token_ids) for group in completions for c in group)
    report(tokens_per_second=tokens / (time.perf_counter() - start))
