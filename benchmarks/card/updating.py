"""The gradient of a step, and the optimizer."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from card.shared import (
    CUDA,
    DEVICE,
    PROMPT,
    SAMPLES,
    SHAPE,
    TEMPERATURE,
    TINY,
    build,
    build_updater,
    parameter_count,
    product_tflops,
    random_groups,
    report,
    seconds,
    synchronize,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from reinforce_lite.config import UpdateConfig
from reinforce_lite.learner.loss import backward_in_chunks
from reinforce_lite.learner.updater import GradientStats, Updater
from reinforce_lite.models.prefix_tree import Branch


def update() -> None:
    """Forward and backward passes for completions of several lengths, against the rate of a large product."""
    policy, peak = build(SHAPE), product_tflops()
    updater, n = build_updater(policy), parameter_count(policy)
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

    branches = [Branch(g.prompt.token_ids, [r.completion.token_ids for r in g.rollouts]) for g in groups[:3]]
    tokens = torch.tensor([t for b in branches for c in b.completions for t in c], device=DEVICE)
    weights = torch.full((len(tokens),), 1e-3)

    def forward() -> Tensor:
        return updater.forward_pass.states(branches, None)  # type: ignore[no-any-return]

    def loss(states: Tensor) -> float:
        leaf = states.detach().requires_grad_()
        return backward_in_chunks(updater.policy.model, leaf, tokens, weights, TEMPERATURE)[0]

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
    for state, offload in (("8-bit", False), ("8-bit", True), ("16-bit", False), ("32-bit", False)):
        _time_optimizer(state, offload)
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _time_optimizer(state: str, offload: bool) -> None:

    updater = Updater(
        build(SHAPE), UpdateConfig(optimizer_state=state, offload_optimizer=offload), TEMPERATURE, 0
    )
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
        offload=offload,
        first_seconds=first_seconds,
        step_seconds=seconds(step, 3, 1) - setting,
        norm_clip_step_sync_seconds=seconds(apply, 3, 1) - setting,
        allocated_gb=torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0,
    )
