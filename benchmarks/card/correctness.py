"""The program and transformers' modules against float64; the sampler against the trainer; the optimizers."""

import torch
from card.shared import (
    DEVICE,
    SMALL,
    TEMPERATURE,
    as_policy,
    build,
    build_model,
    random_groups,
    report,
    sampling,
)
from torch import Tensor

from reinforce_lite.config import UpdateConfig
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.forward import FullSequenceForward, build_forward_pass
from reinforce_lite.models.logprobs import token_logprobs
from reinforce_lite.models.prefix_tree import Branch

FLAT = 2.56
"""The logits' standard deviation: bfloat16's rounding grows with it."""


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

    groups = random_groups(3, 4, 40, 60, SMALL["vocab_size"])
    tokens = torch.tensor([t for g in groups for r in g.rollouts for t in r.completion.token_ids])
    branches = [Branch(g.prompt.token_ids, [r.completion.token_ids for r in g.rollouts]) for g in groups]
    cpu = torch.device("cpu")
    reference = build_model(SMALL, "float32", key_bias, cpu, FLAT).double()
    with torch.no_grad():
        exact = token_logprobs(reference, FullSequenceForward(reference).states(branches, None), tokens)
    for dtype in ("float32", "bfloat16"):
        for path in ("program", "modules"):
            model = build_model(SMALL, dtype, key_bias, cpu, FLAT)
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

    # With the embedding as its head, a random model would repeat its last token with probability 1.
    shape = SMALL | {"tie_word_embeddings": False}
    policy = as_policy(build_model(shape, key_bias=key_bias, logit_spread=FLAT))
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
