"""Fifteen minutes on one GPU: parts, each in a process of its own with its own time limit.

python benchmarks/card/card.py all1 | all2 | PART ...     figures: a JSON line each in $OUT/results.jsonl
TINY=1 python benchmarks/card/card.py correct kernels decode update optimizer     tries the script on a CPU

For a machine that is rented by the call: `all1` is one call, `all2` the next on the same machine.
`prepare.sh` collects what such a machine lacks. The most expensive parts come last, and every figure is
written as soon as it is known. What parts print is in $OUT/log.txt. Arguments of a part are quoted with it:
'train full rank8'.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

TINY = bool(os.environ.get("TINY"))
OUT = Path(os.environ.get("OUT", "out"))
HERE = Path(__file__).resolve().parent
HALVES = HERE.parents[1] / ".card"
KEEP = Path.home() / "keep"
"""What stays on the machine between two calls."""
PART = ""
"""The part that this process runs, with its arguments."""
LIMITS = {
    "smoke": 60,
    "correct": 60,
    "kernels": 60,
    "decode": 75,
    "graph": 90,
    "update": 75,
    "optimizer": 75,
    "cap24": 110,
    "adapter12": 180,
    "tests": 150,
    "train": 240,
    "article": 60,
    "step": 90,
    "generate": 45,
}
"""Seconds."""
CALLS = {
    "all1": ["smoke", "correct", "kernels", "decode", "graph", "update", "optimizer", "cap24"],
    "all2": ["train full rank8", "article", "step", "generate"],
}
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
PROMPT = 150
SAMPLES = 10
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def report(**figures: Any) -> None:
    """Print and append a line of figures. Parts may run concurrently: a line is one write."""
    line = json.dumps({"part": PART, **figures}, default=str)
    print(line, flush=True)
    with (OUT / "results.jsonl").open("a") as file:
        file.write(line + "\n")


def run_parts(parts: Sequence[str]) -> bool:
    """Run each part in a process of its own; return whether all succeeded.

    Their output goes to log.txt, one after another: a machine may give back a few files alone.
    """
    failed = []
    log = OUT / "log.txt"
    for part in parts:
        start, before = time.perf_counter(), log.stat().st_size if log.exists() else 0
        command = [sys.executable, __file__, "--part", part]
        limit = LIMITS[shlex.split(part)[0]] * (4 if TINY else 1)
        with log.open("a") as file:
            print(f"== {part}", file=file, flush=True)
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                status: int | str = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = "timeout"
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that the part started
                process.wait()
        print(f"== {part}: status {status}, {time.perf_counter() - start:.0f} s", flush=True)
        text = log.read_bytes()[before:].decode(errors="replace")
        figures = [line[:400] for line in text.splitlines() if line.startswith("{")]
        print("\n".join(figures) if status == 0 else text[-1500:], flush=True)
        failed += [part] if status != 0 else []
    return not failed


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
    shape: dict[str, Any], dtype: str = "bfloat16", key_bias: float = 0.0, device: torch.device = DEVICE
) -> Any:
    """A model with random weights.

    The final norm is scaled so that a nucleus is as narrow as a trained model's; otherwise every sequence
    takes the sampler's fallback, which sorts the vocabulary. `key_bias` makes scores as large as Qwen2.5's.
    """
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(Qwen2Config(**shape), dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(8.0)
        for layer in model.model.layers[:2] if key_bias else ():
            for bias in (layer.self_attn.k_proj.bias, layer.self_attn.q_proj.bias):
                bias.normal_(0, key_bias)
    return model.requires_grad_(True)


def as_policy(model: Any, fused: bool = True) -> Any:
    """The model as a policy; `fused` uses the program's forward pass, otherwise transformers' modules."""
    from reinforce_lite.models.llama import Llama
    from reinforce_lite.models.policy import Policy

    eos = frozenset({model.config.vocab_size - 1})
    return Policy(model, NoTokenizer(), eos, "random", llama=Llama(model) if fused else None)


def build(shape: dict[str, Any], key_bias: float = 0.0) -> Any:
    """A bfloat16 policy with random weights."""
    return as_policy(build_model(shape, key_bias=key_bias))


def parameter_count(policy: Any) -> int:
    """How many parameters a policy has."""
    return sum(p.numel() for p in policy.model.parameters())


def random_groups(
    questions: int, samples: int, prompt: int, length: int, vocabulary: int = VOCABULARY
) -> list[Any]:
    """Groups of random tokens; prompts differ in length by up to 6 tokens."""
    from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Verdict

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


def prompts(questions: int) -> list[Any]:
    """Random prompts."""
    return [group.prompt for group in random_groups(questions, 1, PROMPT, 1)]


def sampling(samples: int, length: int, min_new_tokens: int = 0) -> Any:
    """How completions are drawn."""
    from reinforce_lite.types import Sampling

    return Sampling(samples, length, min_new_tokens, TEMPERATURE, TOP_P)


def smoke() -> None:
    """What the machine is, and what it reaches: products, copies, launches, waits."""
    start = time.perf_counter()
    import transformers

    import reinforce_lite.cli  # noqa: F401 -- the time that it takes is reported
    from reinforce_lite.utils.environment import package_versions

    report(
        torch=torch.__version__,
        transformers=transformers.__version__,
        import_seconds=round(time.perf_counter() - start, 1),
        versions=package_versions(),
        cores=os.cpu_count(),
        gpu=torch.cuda.get_device_name() if CUDA else None,
        total_bytes=torch.cuda.get_device_properties(0).total_memory if CUDA else None,
    )
    source = torch.randn(2**20 if TINY else 2**30, dtype=torch.bfloat16, device=DEVICE)
    target = torch.empty_like(source)
    small = torch.randn(64, device=DEVICE)

    def thousand_launches() -> None:
        for _ in range(1000):
            small.add_(1.0)

    report(
        product_tflops=product_tflops(),
        copy_gb_s=4 * len(source) / seconds(lambda: target.copy_(source)) / 1e9,
        microseconds_per_launch=1e3 * seconds(thousand_launches),
        microseconds_per_wait=1e6 * seconds(lambda: small[0].item()),
    )


def product_tflops() -> float:
    """The rate of a large product in bfloat16."""
    n = 256 if TINY else 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b) / 1e12


def correct() -> None:
    """The program and transformers' modules on the GPU against float64 on the CPU; each optimizer."""
    for key_bias in (0.0, 20.0):
        _compare_with_float64(key_bias)
        _compare_sampler_with_trainer(key_bias)
    _step_each_optimizer()


def _weights(samples: int) -> Tensor:
    """Small weights for 3 groups."""
    return torch.linspace(-1, 1, 3 * samples, dtype=torch.float64).view(3, samples) / 100


def _compare_with_float64(key_bias: float) -> None:
    from reinforce_lite.config import UpdateConfig
    from reinforce_lite.learner.updater import Updater
    from reinforce_lite.models.forward import FullSequenceForward, build_forward_pass
    from reinforce_lite.models.logprobs import token_logprobs
    from reinforce_lite.models.prefix_tree import Branch

    groups = random_groups(3, 4, 40, 60, SMALL["vocab_size"])
    tokens = torch.tensor([t for g in groups for r in g.rollouts for t in r.completion.token_ids])
    branches = [Branch(g.prompt.token_ids, [r.completion.token_ids for r in g.rollouts]) for g in groups]
    cpu = torch.device("cpu")
    reference = build_model(SMALL, "float32", key_bias, cpu).double()
    with torch.no_grad():
        exact = token_logprobs(reference, FullSequenceForward(reference).states(branches, None), tokens)
    for dtype in ("float32", "bfloat16"):
        for path in ("program", "modules"):
            model = build_model(SMALL, dtype, key_bias, cpu)
            model.load_state_dict({name: w.to(model.dtype) for name, w in reference.state_dict().items()})
            policy = as_policy(model.to(DEVICE), fused=path == "program")
            forward = build_forward_pass(policy.model, policy.llama)
            with torch.no_grad():
                states = forward.states(branches, None)
                logprobs = token_logprobs(policy.model, states, tokens.to(DEVICE)).double().cpu()
            updater = Updater(policy, UpdateConfig(), TEMPERATURE, 0)
            norm = updater.compute_gradient(groups, _weights(4)).norm
            gradients = [w.grad for _, w in sorted(updater.master_weights.items()) if w.grad is not None]
            gap = (logprobs - exact).abs()
            report(
                key_bias=key_bias,
                dtype=dtype,
                path=path,
                mean_gap=float(gap.mean()),
                largest_gap=float(gap.max()),
                gradient_norm=norm,
                gradient=float(torch.cat([g.flatten().double().cpu() for g in gradients]).norm()),
            )


def _compare_sampler_with_trainer(key_bias: float) -> None:
    from reinforce_lite.engines.native import NativeEngine
    from reinforce_lite.models.forward import build_forward_pass
    from reinforce_lite.models.logprobs import token_logprobs
    from reinforce_lite.models.prefix_tree import Branch

    # With the embedding as its head, a random model would repeat its last token with probability 1.
    policy = build(SMALL | {"tie_word_embeddings": False}, key_bias)
    asked = [g.prompt for g in random_groups(3, 4, 40, 60, SMALL["vocab_size"])]
    first, second = (NativeEngine(policy, 8).generate(asked, sampling(4, 40), 1) for _ in range(2))
    completions = [c for group in first for c in group]
    branches = [Branch(p.token_ids, [c.token_ids for c in cs]) for p, cs in zip(asked, first, strict=True)]
    tokens = torch.tensor([t for c in completions for t in c.token_ids], device=DEVICE)
    sampled = torch.tensor([x for c in completions for x in c.logprobs])
    with torch.no_grad():
        states = build_forward_pass(policy.model, policy.llama).states(branches, None)
        gap = (sampled - token_logprobs(policy.model, states, tokens).cpu()).abs()
    again = [c.token_ids for group in second for c in group]
    report(
        key_bias=key_bias,
        mean_logprob=float(sampled.mean()),
        repeatable=[c.token_ids for c in completions] == again,
        sampler_against_trainer_mean=float(gap.mean()),
        sampler_against_trainer_max=float(gap.max()),
    )


def _step_each_optimizer() -> None:
    from reinforce_lite.config import UpdateConfig
    from reinforce_lite.learner.updater import Updater

    for state in ("32-bit", "16-bit", "8-bit"):
        policy = build(SMALL)
        updater = Updater(policy, UpdateConfig(optimizer_state=state, learning_rate=1e-3), TEMPERATURE, 0)
        weight = policy.model.model.layers[0].mlp.up_proj.weight
        before = weight.detach().clone()
        gradient = updater.compute_gradient(random_groups(3, 4, 40, 60, SMALL["vocab_size"]), _weights(4))
        applied = updater.apply_gradient(gradient, 1)
        report(
            optimizer_state=state, applied=applied, mean_change=float((weight.detach() - before).abs().mean())
        )


def decode() -> None:
    """Tokens per second of whole calls at several batch sizes, against the floor."""
    from reinforce_lite.engines.native import NativeEngine

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
def graph() -> None:
    """One decoding step at half length: captured, eager, and by the profiler."""
    from reinforce_lite.engines.ending import Ending
    from reinforce_lite.engines.native import NativeEngine
    from reinforce_lite.engines.sequence import draw_uniforms
    from reinforce_lite.engines.static_scheduler import StaticScheduler

    policy, width = build(SHAPE), 96 if TINY else 250
    engine = NativeEngine(policy)
    for sequences in (8,) if TINY else (160, 32, 250):
        asked = prompts(max(1, sequences // SAMPLES))
        how = sampling(sequences // len(asked), width)
        start = time.perf_counter()
        decoder = engine._static_decoder([p.token_ids for p in asked], how)
        synchronize()
        capture_seconds = time.perf_counter() - start  # the first compiles kernels
        start = time.perf_counter()
        ending = Ending(frozenset(), policy.decode)
        StaticScheduler(decoder, draw_uniforms(asked, how, 0), 0, ending)._admit()
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
    (OUT / f"profile-{name}.txt").write_text(events.table(sort_by=order, row_limit=60))


def _device_us(event: Any) -> float:
    return float(getattr(event, "self_device_time_total", 0))


def _updater(policy: Any) -> Any:
    from reinforce_lite.config import UpdateConfig
    from reinforce_lite.learner.updater import Updater

    return Updater(policy, UpdateConfig(optimizer_state="16-bit", micro_batch_tokens=8192), TEMPERATURE, 0)


def update() -> None:
    """Forward and backward passes for completions of several lengths, against the rate of a large product."""
    policy, peak = build(SHAPE), product_tflops()
    updater, n = _updater(policy), parameter_count(policy)
    for length in (16,) if TINY else (250, 512, 1024):
        questions = 6 if length == 250 else 2
        groups = random_groups(questions, SAMPLES, PROMPT, length)
        weights = torch.linspace(-1, 1, SAMPLES, dtype=torch.float64).expand(questions, SAMPLES) / length
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        tokens = updater.compute_gradient(groups, weights).tokens
        synchronize()
        first_seconds = time.perf_counter() - start  # compiles kernels
        spent = seconds(lambda g=groups, w=weights: updater.compute_gradient(g, w), times=2, warmup=0)
        tflops = 6 * n * tokens / spent / 1e12
        report(
            completion_length=length,
            tokens=tokens,
            first_seconds=first_seconds,
            tokens_per_second=tokens / spent,
            tflops=tflops,
            of_peak=tflops / peak,
            micro_batch_tokens=updater.micro_batch_tokens,
            allocated_gb=torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0,
            reserved_gb=torch.cuda.max_memory_reserved() / 1e9 if CUDA else 0,
        )
        if length in {16, 250}:
            _profile_update(lambda g=groups, w=weights: updater.compute_gradient(g, w), tokens)
            _time_phases(updater, groups)


def _profile_update(job: Callable[[], Any], tokens: int) -> None:
    """Where the time of an update goes, by kernel."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]) as profiler:
        start = time.perf_counter()
        job()
        synchronize()
        spent = time.perf_counter() - start
    events = profiler.key_averages()
    kernels = sorted(events, key=_kernel_us, reverse=True)
    report(
        profiled_tokens=tokens,
        profiled_seconds=spent,
        gpu_busy_seconds=sum(map(_kernel_us, events)) / 1e6,
        launches=sum(e.count for e in events if "Launch" in e.key),
        waits=sum(e.count for e in events if "Synchronize" in e.key),
    )
    for kernel in kernels[:30] if CUDA else []:
        report(kernel=kernel.key[:100], milliseconds=round(_kernel_us(kernel) / 1e3, 2), times=kernel.count)


def _kernel_us(event: Any) -> float:
    is_kernel = "CUDA" in str(event.device_type)  # the operation that launched it has the same time again
    return float(event.self_device_time_total) if is_kernel else 0.0


def _time_phases(updater: Any, groups: Sequence[Any]) -> None:
    """Milliseconds of a micro-batch's passes through the layers, and of its loss with the head's passes."""
    from reinforce_lite.learner.loss import backward_in_chunks
    from reinforce_lite.models.prefix_tree import Branch

    branches = [Branch(g.prompt.token_ids, [r.completion.token_ids for r in g.rollouts]) for g in groups[:3]]
    tokens = torch.tensor([t for b in branches for c in b.completions for t in c], device=DEVICE)
    weights = torch.full((len(tokens),), 1e-3)

    def forward() -> Tensor:
        return updater.forward_pass.states(branches, None)  # type: ignore[no-any-return]

    def loss(states: Tensor) -> float:
        leaf = states.detach().requires_grad_()
        return backward_in_chunks(updater.policy.model, leaf, tokens, weights, TEMPERATURE)

    states = forward()
    gradient = torch.ones_like(states)
    forward_seconds = seconds(forward, 3, 1)
    layers = seconds(lambda: forward().backward(gradient), 3, 1)  # type: ignore[no-untyped-call]
    report(
        states=len(states),
        forward_ms=1e3 * forward_seconds,
        backward_ms=1e3 * (layers - forward_seconds),
        loss_ms=1e3 * seconds(lambda: loss(states), 3, 1),
    )


def optimizer() -> None:
    """One optimizer step of a 3B model with each state, and what surrounds it."""
    for state in ("8-bit", "16-bit", "32-bit"):
        _time_optimizer(state)
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _time_optimizer(state: str) -> None:
    from reinforce_lite.config import UpdateConfig
    from reinforce_lite.learner.updater import GradientStats, Updater

    updater = Updater(build(SHAPE), UpdateConfig(optimizer_state=state), TEMPERATURE, 0)
    start = time.perf_counter()
    updater.allocate_optimizer_state()
    synchronize()
    first_seconds = time.perf_counter() - start  # compiles and allocates

    def set_gradients() -> None:
        for w in updater.master_weights.values():
            w.grad = torch.full_like(w, 1e-3)

    def step() -> None:
        set_gradients()
        updater.optimizer.step(1e-6, 1)

    def apply() -> None:
        set_gradients()
        updater.apply_gradient(GradientStats(0.0, updater._gradient_norm(), 1), 1)

    setting = seconds(set_gradients, 3, 1)
    report(
        optimizer_state=state,
        first_seconds=first_seconds,
        step_seconds=seconds(step, 3, 1) - setting,
        norm_clip_step_sync_seconds=seconds(apply, 3, 1) - setting,
        allocated_gb=torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0,
    )


HEADS = SimpleNamespace(query_heads=16, kv_heads=2, head_size=128, key_start=16 * 128, scale=128**-0.5)
"""The attention of a Qwen2.5-3B, as a `Llama` describes it."""


def kernels() -> None:
    """Attention and elementwise kernels: exactness and milliseconds."""
    _check_merged_parts()
    _time_elementwise()
    _time_tree_attention()
    if CUDA:
        _check_flash_kernels()


def _offsets(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def _error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def _random_qkv(queries: int, keys: int) -> list[Tensor]:
    """Queries, keys, values and a gradient of the output: (queries, Q, D) or (keys, K, D)."""
    dtype = torch.bfloat16 if CUDA else torch.float32
    torch.manual_seed(0)
    shapes = [(queries, HEADS.query_heads), (keys, HEADS.kv_heads), (keys, HEADS.kv_heads)]
    shapes += shapes[:1]
    return [torch.randn(*s, HEADS.head_size, device=DEVICE, dtype=dtype) for s in shapes]


def _check_merged_parts() -> None:
    """Attention to 96 keys in two parts, and its gradient, against float64."""
    from reinforce_lite.models.elementwise import merge
    from reinforce_lite.models.varlen import Segments, attend, attend_backward

    n, m, cut = 64, 96, 32
    q, k, v, grad = _random_qkv(n, m)
    scale = HEADS.scale
    parts = [
        (k[keys], v[keys], Segments(_offsets(0, n), _offsets(0, len(k[keys])), n, m))
        for keys in (slice(0, cut), slice(cut, m))
    ]
    (a, lse_a), (b, lse_b) = (attend(q, *part, scale) for part in parts)
    out, lse = merge(a, lse_a, b, lse_b), torch.logaddexp(lse_a, lse_b)
    first, second = (
        attend_backward(grad, q, keys, values, (out, lse), segments, scale)
        for keys, values, segments in parts
    )
    exact_q, exact_k, exact_v = (x.double().detach().requires_grad_() for x in (q, k, v))
    repeats = HEADS.query_heads // HEADS.kv_heads
    scores = torch.einsum("nhd,mhd->hnm", exact_q, exact_k.repeat_interleave(repeats, 1)) * scale
    exact = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), exact_v.repeat_interleave(repeats, 1))
    exact.backward(grad.double())
    report(
        merged=_error(out, exact),
        d_queries=_error(first[0] + second[0], exact_q.grad),
        d_keys=_error(torch.cat([first[1], second[1]]), exact_k.grad),
        d_values=_error(torch.cat([first[2], second[2]]), exact_v.grad),
    )


def _check_flash_kernels() -> None:
    """A query without keys, and decoding with a number of used keys for each sequence."""
    flash = torch.ops.aten._flash_attention_forward
    q, k, v, _ = _random_qkv(64, 96)
    empty = flash(
        q[:2], k[:8], v[:8], _offsets(0, 1, 2), _offsets(0, 0, 8), 1, 8, 0.0, False, False, scale=HEADS.scale
    )
    report(no_keys_out=float(empty[0][0].abs().max()), no_keys_lse=float(empty[1][0, 0]))  # +inf or -inf?
    used = _offsets(1, 5, 64, 33, 2, 17, 40, 9)
    sequences, width = len(used), 64
    q, k, v, _ = _random_qkv(sequences, sequences * width)
    starts = _offsets(*range(0, sequences * width + 1, width))
    out, lse, *_ = flash(
        *(q, k, v, _offsets(*range(sequences + 1)), starts, 1, width, 0.0, False, False),
        scale=HEADS.scale,
        seqused_k=used,
    )
    repeats = HEADS.query_heads // HEADS.kv_heads
    keys, values = (
        x.double().view(sequences, width, HEADS.kv_heads, -1).repeat_interleave(repeats, 2) for x in (k, v)
    )
    scores = torch.einsum("rhd,rwhd->rhw", q.double(), keys) * HEADS.scale
    scores = scores.masked_fill(torch.arange(width, device=DEVICE) >= used[:, None, None], -torch.inf)
    lse_by_sequence = lse.t() if lse.shape[0] == HEADS.query_heads else lse
    report(
        decode_out=_error(out, torch.einsum("rhw,rwhd->rhd", scores.softmax(-1), values)),
        decode_lse_shape=list(lse.shape),
        decode_lse=_error(lse_by_sequence, scores.logsumexp(-1))
        if lse.numel() == scores[..., 0].numel()
        else None,
    )


def _time_elementwise() -> None:
    """Each function for a micro-batch of a 3B model: time, and what it reads and writes."""
    from reinforce_lite.models import elementwise, logprobs
    from reinforce_lite.models.llama_families import SILU

    n, heads, d = 64 if TINY else 8000, HEADS.query_heads, HEADS.head_size
    hidden, inner, vocabulary = (64, 96, 256) if TINY else (2048, 11_008, 151_936)
    chunk = 32 if TINY else 883
    dtype = torch.bfloat16 if CUDA else torch.float32

    def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=dtype)

    x, gain, gate_up, d_inner = random(n, hidden), random(hidden), random(n, 2 * inner), random(n, inner)
    qkv, angles = random(n, (heads + 4) * d), random(n, d)
    out, lse = random(n, heads, d), random(heads, n, dtype=torch.float32).t()
    logits, tokens = random(chunk, vocabulary), torch.randint(vocabulary, (chunk,), device=DEVICE)
    inverse, normalizer = torch.ones(n, 1, device=DEVICE), torch.full((chunk,), 12.0, device=DEVICE)
    size = x.element_size()
    jobs: dict[str, tuple[Callable[[], Any], int]] = {
        "rms_norm": (lambda: elementwise.rms_norm(x, gain, 1e-6), 2 * x.numel()),
        "swiglu": (lambda: elementwise.swiglu(gate_up, SILU), 3 * n * inner),
        "swiglu_backward": (lambda: elementwise.swiglu_backward(d_inner, gate_up, SILU), 6 * n * inner),
        "rotate": (lambda: elementwise.rotate(qkv, angles, angles, heads + 2, d), 2 * qkv.numel()),
        "merge": (lambda: elementwise.merge(out, lse, out, lse), 3 * out.numel()),
    }
    if CUDA:
        compiled = elementwise.compile_for_card
        forward, gradient = logprobs._logprobs_and_normalizer, logprobs._logits_gradient
        jobs |= {
            "rms_norm_backward": (
                lambda: elementwise.rms_norm_backward(x, x, inverse, gain, needs_gain=True),
                3 * x.numel(),
            ),
            "logprobs": (lambda: compiled(forward)(logits, tokens, 0.7), logits.numel()),
            "logprobs_backward": (
                lambda: compiled(gradient)(logits, tokens, normalizer, normalizer, 0.7),
                2 * logits.numel(),
            ),
        }
    for name, (job, elements) in jobs.items():
        start = time.perf_counter()
        job()
        synchronize()
        first_seconds = time.perf_counter() - start
        spent = seconds(job, 10)
        report(
            function=name,
            first_seconds=first_seconds,
            milliseconds=1e3 * spent,
            gb_s=elements * size / spent / 1e9,
        )


def _time_tree_attention() -> None:
    """One layer's attention over a step's tree, forward and backward."""
    from reinforce_lite.models.prefix_attention import PrefixAttention
    from reinforce_lite.models.prefix_tree import Branch, PrefixTree

    width = (HEADS.query_heads + 2 * HEADS.kv_heads) * HEADS.head_size
    dtype = torch.bfloat16 if CUDA else torch.float32
    for length, prefix in [(16, 8)] if TINY else [(250, 0), (250, 512), (512, 0), (1024, 0)]:
        branches = [Branch(range(PROMPT), [range(length)] * SAMPLES) for _ in range(3)]
        tree = PrefixTree(branches, prefix, DEVICE)
        qkv = torch.randn(len(tree.ids), width, device=DEVICE, dtype=dtype).requires_grad_()
        shared = torch.randn(prefix, width - HEADS.key_start, device=DEVICE, dtype=dtype).requires_grad_()
        grad = torch.randn(len(tree.ids), HEADS.key_start, device=DEVICE, dtype=dtype)
        attention: Any = PrefixAttention(HEADS, tree, [shared] if prefix else ())  # type: ignore[arg-type]
        forward = seconds(lambda a=attention, x=qkv: a(0, x))
        both = seconds(lambda a=attention, x=qkv, g=grad: a(0, x).backward(g))
        report(
            completion_length=length,
            prefix=prefix,
            tokens=len(tree.ids),
            forward_ms=1e3 * forward,
            backward_ms=1e3 * (both - forward),
        )


def cap24() -> None:
    """A full step of a 3B model under a cap of 24 GB."""
    _step_under_a_cap(24)


def adapter12() -> None:
    """The same with an adapter of rank 32 under a cap of 12 GB."""
    _step_under_a_cap(12, rank=32)


def _step_under_a_cap(gb: int, rank: int = 0) -> None:
    import gpu
    import memory

    def build_policy(arguments: argparse.Namespace) -> Any:
        return build(SHAPE)

    gpu.build = memory.build = build_policy
    memory.groups = lambda questions, samples, length: random_groups(questions, samples, 100, length)
    start = time.perf_counter()
    figures = memory.under_a_cap(argparse.Namespace(tiny=TINY, dtype="bfloat16"), gb, rank)
    report(seconds=time.perf_counter() - start, **figures)


def step() -> None:
    """Rollout, gradient and optimizer of two whole steps."""
    from reinforce_lite.engines.native import NativeEngine

    policy = build(SHAPE)
    length = 8 if TINY else 250
    groups = random_groups(2 if TINY else 16, SAMPLES, PROMPT, length)
    count = SAMPLES * len(groups)
    weights = torch.linspace(-1, 1, SAMPLES, dtype=torch.float64).expand(len(groups), SAMPLES)
    engine, updater = NativeEngine(policy, 256), _updater(policy)
    for number in (1, 2):
        times = [time.perf_counter()]
        engine.generate([g.prompt for g in groups], sampling(SAMPLES, length, length), 0)
        synchronize()
        times.append(time.perf_counter())
        gradient = updater.compute_gradient(groups, weights / (count * length))
        synchronize()
        times.append(time.perf_counter())
        updater.apply_gradient(gradient, number)
        synchronize()
        times.append(time.perf_counter())
        report(
            step=number,
            rollout=times[1] - times[0],
            gradient=times[2] - times[1],
            optimizer=times[3] - times[2],
            seconds_per_completion=(times[3] - times[0]) / count,
            tokens=gradient.tokens,
        )


def article() -> None:
    """The first implementation's loop: ten completions in a batch without a cache, the gradient of one."""
    model, length = build_model(SHAPE), 4 if TINY else 250
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.tensor([prompts(1)[0].token_ids], device=DEVICE).expand(SAMPLES, -1)
    prompt_length = ids.shape[1]
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(length):
            logits = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].float() / TEMPERATURE
            p, order = logits.softmax(-1).sort(descending=True)
            p = p * ((p.cumsum(-1) - p) < TOP_P)
            ids = torch.cat([ids, order.gather(1, p.multinomial(1))], dim=1)
    synchronize()
    middle = time.perf_counter()
    logprobs = model(ids[:1, :-1], use_cache=False).logits.log_softmax(-1)
    loss = -logprobs.gather(2, ids[:1, 1:, None])[:, prompt_length - 1 :].sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    synchronize()
    end = time.perf_counter()
    report(rollout=middle - start, update=end - middle, seconds_per_completion=(end - start) / SAMPLES)


def generate() -> None:
    """transformers' generate."""
    from reinforce_lite.engines.hf import HFEngine

    engine, length = HFEngine(build(SHAPE), 160), 4 if TINY else 64
    asked = prompts(16)
    start = time.perf_counter()
    completions = engine.generate(asked, sampling(SAMPLES, length, length), 0)
    synchronize()
    tokens = sum(len(c.token_ids) for group in completions for c in group)
    report(tokens_per_second=tokens / (time.perf_counter() - start))


def train(*settings: str) -> None:
    """The quickstart with real weights and these settings of RUNS (default: the first).

    Three seeds each, all runs concurrently.
    """
    start = time.perf_counter()
    _load_embedded_model()
    report(model_seconds=time.perf_counter() - start)
    KEEP.mkdir(parents=True, exist_ok=True)
    runs = [(setting, seed) for setting in settings or list(RUNS)[:1] for seed in range(2 if TINY else 3)]
    started = {run: _start_run(*run) for run in runs}
    failed = [_run_name(*run) for run, process in started.items() if process.wait()]
    for setting, seed in runs:
        if _run_name(setting, seed) not in failed:
            _report_run(setting, seed)
    for name in failed:
        print((KEEP / f"{name}.log").read_text()[-1500:], flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


RUNS: dict[str, tuple[str, ...]] = {
    "full": (),
    "rank8": ("--adapter.rank", "8", "--update.learning-rate", "1e-4"),
    "rank1": ("--adapter.rank", "1", "--update.learning-rate", "1e-4"),
    "rank32": ("--adapter.rank", "32", "--update.learning-rate", "1e-4"),
    "rank8-slow": ("--adapter.rank", "8", "--update.learning-rate", "5e-5"),
    "rank8-fast": ("--adapter.rank", "8", "--update.learning-rate", "2e-4"),
}
"""Options of the quickstart by setting."""
TINY_RUN = (
    *("--train.steps", "1", "--eval.n", "2", "--eval.validation-n", "2"),
    *("--rollout.prompts-per-step", "2", "--rollout.group-size", "3", "--rollout.max-new-tokens", "8"),
)


def _load_embedded_model() -> None:
    """SmolLM2-135M from the two halves of its GGUF file, if prepare.sh left them, or from the cache."""
    from reinforce_lite.models import embedded

    halves = (KEEP / "half1", HALVES / "half2" / "half2")
    if all(half.exists() for half in halves):
        os.environ["REINFORCE_LITE_CACHE"] = str(KEEP / "cache")
        folder = embedded.cache_folder() / embedded.EMBEDDED_NAME
        if not folder.is_dir():
            gguf = KEEP / "model.gguf"
            gguf.write_bytes(b"".join(half.read_bytes() for half in halves))
            folder.parent.mkdir(parents=True, exist_ok=True)
            embedded._convert(gguf, folder)
    embedded.embedded_folder()


def _run_name(setting: str, seed: int) -> str:
    return f"{setting}-{seed}"


def _start_run(setting: str, seed: int) -> "subprocess.Popen[bytes]":
    name = _run_name(setting, seed)
    shutil.rmtree(KEEP / "runs" / name, ignore_errors=True)
    command = [sys.executable, "-m", "reinforce_lite", "train", "quickstart", *RUNS[setting]]
    command += ["--run", name, "--train.seed", str(seed), *(TINY_RUN if TINY else ())]
    with (KEEP / f"{name}.log").open("wb") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=KEEP, stdout=log, stderr=log, env=environment)


def _report_run(setting: str, seed: int) -> None:
    folder = KEEP / "runs" / _run_name(setting, seed)
    summary = json.loads((folder / "summary.json").read_text())
    steps, evals = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("steps.jsonl", "evals.jsonl")
    )
    names = {"step": "step_time", "rollout": "time/rollout", "update": "time/update"}
    kept = ("self_check", "memory", "adapter", "rollout_tokens_per_second", "train_tokens_per_second")
    report(
        setting=setting,
        seed=seed,
        seconds=summary["seconds"],
        before=summary["evals"]["before"],
        after=summary["evals"]["after"],
        validation=[(e["step"], e["strict"]) for e in evals if e["split"] == "validation"],
        rewards=[round(line["reward"], 2) for line in steps],
        **{f"{key}_seconds": [round(line[name], 3) for line in steps] for key, name in names.items()},
        logprob_entropy=[round(line["entropy"], 3) for line in steps],
        **{key: summary.get(key) for key in kept},
    )


TESTS = (
    "tests/models/test_forward.py",
    "tests/models/test_attention.py",
    "tests/engines/test_native.py",
    "tests/learner/test_updater.py",
)


def tests(*paths: str) -> None:
    """pytest, with the tensors of these files on the GPU."""
    environment = os.environ | {"REINFORCE_LITE_TEST_DEVICE": DEVICE.type}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(paths or TESTS)]
    done = subprocess.run(
        command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout[-20_000:], done.stderr[-2000:])
    lines = done.stdout.splitlines()
    failed = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    report(status=done.returncode, last=lines[-1:], failed=failed)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    sys.path.append(str(HERE.parent))  # the other benchmarks
    if sys.argv[1] == "--part":
        PART = sys.argv[2]
        name, *arguments = shlex.split(PART)
        globals()[name](*arguments)
    else:
        sys.exit(not run_parts(CALLS.get(sys.argv[1]) or sys.argv[1:]))
