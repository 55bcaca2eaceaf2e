"""Whole steps, also under a cap of memory, and the article's loop."""

import time

import memory
import torch
from card.shared import (
    DEVICE,
    PROMPT,
    SAMPLES,
    SHAPE,
    TEMPERATURE,
    TINY,
    TOP_P,
    build,
    build_model,
    build_updater,
    prompts,
    random_groups,
    report,
    sampling,
    synchronize,
)

from reinforce_lite.engines.native import NativeEngine


def cap24() -> None:
    """A full step of a 3B model under a cap of 24 GB."""
    _step_under_a_cap(24)


def adapter12() -> None:
    """The same with an adapter of rank 32 under a cap of 12 GB."""
    _step_under_a_cap(12, rank=32)


def _step_under_a_cap(gb: int, rank: int = 0) -> None:
    start = time.perf_counter()
    figures = memory.under_a_cap(gb, rank)
    report(seconds=time.perf_counter() - start, **figures)


def step() -> None:
    """Rollout, gradient and optimizer of two whole steps."""

    policy = build(SHAPE)
    length = 8 if TINY else 250
    groups = random_groups(2 if TINY else 16, SAMPLES, PROMPT, length)
    count = SAMPLES * len(groups)
    weights = torch.linspace(-1, 1, SAMPLES, dtype=torch.float64).expand(len(groups), SAMPLES)
    engine, updater = NativeEngine(policy, 256), build_updater(policy)
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
