"""Before the first step: do engine and update compute what the model's own forward pass computes?

A few completions are sampled. The log-probabilities that the engine recorded for their tokens, and those that
an update sees, are compared with plain transformers': each sequence by itself, through the model's own code,
without cache, padding or sharing. So a family whose head, positions or attention this program does not know
is refused before it is trained on wrong numbers. It takes seconds, and changes nothing.
"""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from reinforce_lite.config import Config
from reinforce_lite.engines import COPYING_ENGINES, make_engine
from reinforce_lite.engines.base import Engine
from reinforce_lite.engines.vllm import VLLMEngine
from reinforce_lite.errors import SamplerGapError, UsageError
from reinforce_lite.learner.sampler_gap import SamplerGap
from reinforce_lite.learner.updater import token_logprobs_in_update
from reinforce_lite.models import distributed
from reinforce_lite.models.forward import ForwardPass, build_forward_pass
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_tree import Branch, Ids
from reinforce_lite.pipeline import Pipeline
from reinforce_lite.types import Prompt, Sampling

PROMPTS, SAMPLES, TOKENS = 2, 2, 8
"""How many prompts are completed, how often, and the tokens of each completion."""
BOUND, FLOAT16_BOUND, BFLOAT16_BOUND = 1e-3, 0.1, 0.5
"""The largest gaps in nats that rounding explains. In bfloat16, whose 8 bits round a logit of 20 by up to
0.06, the worst of 48 tokens was off by 0.1 to 0.3 in the embedded model (docs/log.md); float16 has 11."""
MEAN_BOUND, FLOAT16_MEAN_BOUND, BFLOAT16_MEAN_BOUND = 1e-3, 0.05, 0.3
"""The same for the mean over the tokens of a step. In bfloat16 the embedded model's is 0.02 to 0.03."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The largest difference of a token's log-probability from the model's own forward pass, in nats."""

    engine: float
    """Of those that the engine recorded."""
    update: float
    """Of those that an update sees."""
    bound: float

    @property
    def max_gap(self) -> float:
        """The larger of the two."""
        return max(self.engine, self.update)

    @property
    def passed(self) -> bool:
        """Whether both are numbers within the bound."""
        return self.engine <= self.bound and self.update <= self.bound  # NaN is not


def self_check(pipeline: Pipeline, forward_pass: ForwardPass) -> SelfCheck:
    """Compare engine and update with plain transformers on a few completions of the first problems.

    Raises UsageError where they differ by more than rounding.
    """
    problems = pipeline.problems("train")[:PROMPTS]
    prompts = [pipeline.prompt_builder(problem.question) for problem in problems]
    tokens = min(TOKENS, pipeline.config.rollout.max_new_tokens)  # as many as vLLM was started for
    sampling = Sampling(SAMPLES, tokens, tokens, pipeline.config.rollout.temperature)
    if corrected_at := pipeline.config.corrected_at:  # forbidden end tokens count in what vLLM then records
        sampling = replace(sampling, min_new_tokens=0, recorded_temperature=corrected_at)
    check = compare_logprobs(pipeline.policy, pipeline.engine, forward_pass, prompts, sampling)
    if not check.passed:
        raise _refusal(pipeline, forward_pass, prompts, sampling, check)
    return check


def check_sampler_gap(gap: SamplerGap, step: int, policy: Policy) -> None:
    """Refuse completions that the policy's present weights did not sample.

    Raises SamplerGapError where engine and update differ by more than rounding in the mean.
    """
    bounds = {torch.float16: FLOAT16_MEAN_BOUND, torch.bfloat16: BFLOAT16_MEAN_BOUND}
    bound, dtype = bounds.get(policy.dtype, MEAN_BOUND), str(policy.dtype).removeprefix("torch.")
    if gap.mean > bound:  # NaN is dealt with as a step that is not finite
        raise SamplerGapError(
            f"in step {step} the engine's log-probabilities differ from the update's by {gap.mean:.2g} nats "
            f"per token (at most {bound:g} is rounding in {dtype}): it did not sample from the weights that "
            "are trained",
            "please report it with the run's config.toml; in a new run, try --rollout.engine hf",
        )


def compare_logprobs(
    policy: Policy, engine: Engine, forward_pass: ForwardPass, prompts: Sequence[Prompt], sampling: Sampling
) -> SelfCheck:
    """The gaps on completions of these prompts, with an adapter other than zero."""
    with policy.adapter.perturbed() if policy.adapter else nullcontext():
        return _compare_logprobs(policy, engine, forward_pass, prompts, sampling)


def _compare_logprobs(
    policy: Policy, engine: Engine, forward_pass: ForwardPass, prompts: Sequence[Prompt], sampling: Sampling
) -> SelfCheck:
    groups = engine.generate(prompts, sampling, seed=0)
    branches = [Branch(p.token_ids, [c.token_ids for c in g]) for p, g in zip(prompts, groups, strict=True)]
    recorded = torch.tensor([lp for group in groups for c in group for lp in c.logprobs])  # (L,)
    at = sampling.recorded_temperature
    seen = token_logprobs_in_update(policy.model, forward_pass, branches, at).cpu()  # (L,)
    plain = [_plain_logprobs(policy.model, b.prompt, c, at) for b in branches for c in b.completions]
    bound = {torch.float16: FLOAT16_BOUND, torch.bfloat16: BFLOAT16_BOUND}.get(policy.dtype, BOUND)
    return SelfCheck(_gap(recorded, torch.cat(plain)), _gap(seen, torch.cat(plain)), bound)


def _gap(logprobs: Tensor, plain: Tensor) -> float:
    return float((logprobs.double() - plain.double()).abs().max())


@torch.inference_mode()
def _plain_logprobs(model: Any, prompt: Ids, completion: Ids, temperature: float = 1.0) -> Tensor:
    """(completion,) log-probabilities by the model's own forward pass over the whole sequence."""
    logits = plain_logits(model, (*prompt, *completion), len(completion) + 1)[:-1]  # (completion, V)
    tokens = torch.tensor(completion, device=logits.device)[:, None]
    return (logits / temperature).log_softmax(-1).gather(1, tokens).squeeze(1).cpu()


@torch.inference_mode()
def plain_logits(model: Any, ids: Ids, n: int) -> Tensor:
    """(n, V) float32 logits of the last n tokens of a sequence, by the model's own forward pass."""
    options = {"logits_to_keep": n} if "logits_to_keep" in signature(model.forward).parameters else {}
    logits: Tensor = model(torch.tensor([ids], device=model.device), use_cache=False, **options).logits
    return logits[0, -n:].float()


def _refusal(
    pipeline: Pipeline,
    forward_pass: ForwardPass,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    check: SelfCheck,
) -> UsageError:
    policy, config = pipeline.policy, pipeline.config
    gaps = {f"{config.rollout.engine} engine": check.engine, "update": check.update}
    wrong = " and in the ".join(
        f"{name} by {gap:.2g}" for name, gap in gaps.items() if not gap <= check.bound
    )
    cause = (
        f"the log-probabilities of {policy.name} differ from its own forward pass in the {wrong} nats "
        f"(at most {check.bound:g} is rounding in {str(policy.dtype).removeprefix('torch.')})"
    )
    engine_alone = check.update <= check.bound
    pipeline.close()  # a GPU has room for one vLLM
    return UsageError(cause, _remedy(policy, config, forward_pass, prompts, sampling, engine_alone))


def _remedy(
    policy: Policy,
    config: Config,
    forward_pass: ForwardPass,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    engine_alone: bool,
) -> str:
    """The first change of settings with which the check passes. The policy can't be used
    afterwards, except for a base that other runs share.

    Another engine is tried only where the engine alone is wrong: it samples other completions, on which a
    wrong update may pass by chance. Several processes do not try vLLM again, which they would have to start
    together.
    """
    if engine_alone and config.rollout.engine != "hf":
        engine = make_engine("hf", policy, config.rollout.max_num_seqs)
        if compare_logprobs(policy, engine, forward_pass, prompts, sampling).passed:
            return "they agree with --rollout.engine hf"
    can_start = config.rollout.engine not in COPYING_ENGINES or distributed.size() == 1
    # Other runs go on with a shared base as it is.
    if policy.dtype != torch.float32 and not policy.is_shared and can_start:
        policy.model.float()
        policy.llama = policy.llama and Llama(policy.model)
        if policy.llama and policy.adapter:
            policy.llama.adapt(policy.adapter)
        engine = make_engine(
            config.rollout.engine,
            policy,
            config.rollout.max_num_seqs,
            max_length=config.max_sequence_tokens,
            recorded_temperature=sampling.recorded_temperature,
        )
        forward_pass = build_forward_pass(policy.model, policy.llama, config.update.activation_checkpointing)
        with closing(engine) if isinstance(engine, VLLMEngine) else nullcontext():
            if compare_logprobs(policy, engine, forward_pass, prompts, sampling).passed:
                return "they agree with --model.dtype float32"
    return "this program can't train the model: please report its config.json, and choose another"
