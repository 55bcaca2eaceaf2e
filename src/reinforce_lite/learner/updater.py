"""One update of the policy from a step's groups: micro-batches, clipping, warm-up, AdamW.

A micro-batch holds as many completions as its token budget allows, of several groups where they fit. The
prefix that all prompts share and each prompt pass through the policy once (`forward.py`). The loss weights
are fixed beforehand, so how a step is split into micro-batches does not change the gradient. Completions of
loss weight 0 are skipped, which does not change it either and saves most of a step's time.

Matrix products may be in bfloat16 or float16. The optimizer usually updates float32 master weights, since
bfloat16 would round away an update of a thousandth of a weight (`optimizers.py` has alternatives). Gradients
accumulate in the dtype of the master weights and are freed after the update. In float16 the loss is scaled
(`loss_scale.py`).

After running out of memory, the same completions are passed again in smaller micro-batches.

With `update.shard_optimizer` each of several processes keeps only the master weights and moments of its part
of every weight (ZeRO stage 1, Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054). All get the
whole gradient; each updates its parts, and the processes then give each other the new weights. For
`update.shard_weights` see `sharded_updater.py`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reinforce_lite.config import UpdateConfig
from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.learner.loss import backward_in_chunks
from reinforce_lite.learner.loss_scale import LossScale
from reinforce_lite.learner.optimizers import make_optimizer, saved_state_bytes
from reinforce_lite.learner.sampler_gap import NO_GAP, SamplerGap
from reinforce_lite.models import distributed
from reinforce_lite.models.forward import (
    ForwardPass,
    SharedPrefix,
    build_forward_pass,
    common_prefix_length,
)
from reinforce_lite.models.logprobs import token_logprobs
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_tree import Branch, Ids
from reinforce_lite.types import Group
from reinforce_lite.utils.memory import retry_on_oom
from reinforce_lite.utils.seeding import derive_seed
from reinforce_lite.utils.tensors import not_finite

CONVERTED_ELEMENTS = 2**20
"""Elements of a 16-bit gradient that are converted to float32 at a time: on a CPU, a temporary of the whole
gradient's size takes six times as long."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GradientStats:
    """A step's loss and gradient in figures; the gradient itself is in `Updater.gradient_holders`."""

    loss: float
    norm: float
    """L2, before clipping; 0 when no completion has a nonzero loss weight."""
    tokens: int
    """Tokens of all micro-batches: the prefix that all prompts share counts once, the rest of a prompt once
    in each; 0 if all loss weights are 0."""
    sampler_gap: SamplerGap = NO_GAP
    """Between engine and update, on the completion tokens."""
    loss_scale: LossScale | None = None
    """With which the gradient was computed; only in float16."""

    @classmethod
    def of_shares(cls, shares: Sequence["GradientStats"], norm: float) -> "GradientStats":
        """Those of a whole step, from the shares of several processes and the norm of the summed gradient."""
        return cls(
            loss=sum(share.loss for share in shares),
            norm=norm,
            tokens=sum(share.tokens for share in shares),
            sampler_gap=sum((share.sampler_gap for share in shares), NO_GAP),
            loss_scale=min((s for g in shares if (s := g.loss_scale)), key=lambda s: s.factor, default=None),
        )

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are free of NaN and infinity."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class TrainableCompletion(NamedTuple):
    """A completion that has a nonzero loss weight."""

    token_ids: tuple[int, ...]
    loss_weight: float
    logprobs: tuple[float, ...]
    """As the engine recorded them."""


@dataclass(frozen=True, slots=True)
class TrainableGroup:
    """The completions of one prompt that have a nonzero loss weight."""

    prompt: tuple[int, ...]
    completions: list[TrainableCompletion]


@dataclass(slots=True)
class MicroBatch:
    """Completions that pass through the policy together."""

    branches: list[Branch] = field(default_factory=list)
    completions: list[TrainableCompletion] = field(default_factory=list)
    """Those of the branches, in their order."""


class Updater:
    """Computes a step's gradient and applies it; owns the optimizer and the master weights."""

    by_rows = False
    """Whether a process's part of a sharded weight is whole rows of it."""

    def __init__(
        self,
        policy: Policy,
        config: UpdateConfig,
        temperature: float,
        seed: int,
        corrected_at: float | None = None,
    ) -> None:
        """`temperature` is that of the differentiated log pi; `seed` is that of stochastic rounding.

        `corrected_at` is the rollout's temperature, at which completions then record their log-probabilities;
        with it, tokens have importance weights.
        """
        self.policy = policy
        self.corrected_at = corrected_at
        self.config = config
        self.temperature = temperature
        self.seed = seed
        self.micro_batch_tokens = config.micro_batch_tokens
        """Halved each time memory runs out."""
        self.loss_scale = LossScale() if policy.dtype == torch.float16 else None
        if policy.llama:
            policy.llama.check_fused()
        self.params = policy.trained_parameters()
        self.model, self.forward_pass = self._make_model()
        self.is_sharded = self.by_rows or (config.shard_optimizer and distributed.size() > 1)
        self.gradient_holders, self.master_weights = self._make_master_weights()
        """By name: what has the gradient of a whole weight as its `grad`, and what the optimizer updates, the
        flat parts of this process where it is sharded."""
        policy.master_weights = None  # the updater has them, or does without
        self.optimizer = make_optimizer(config, self.master_weights)

    def _make_model(self) -> tuple[Any, ForwardPass]:
        """What computes the gradient: the policy itself."""
        policy, checkpointing = self.policy, self.config.activation_checkpointing
        return policy.model, build_forward_pass(policy.model, policy.llama, checkpointing)

    def _make_master_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What has gradients, and what the optimizer updates: what is trained, or with 32-bit state float32
        copies of 16-bit weights.
        """
        is_float32 = self.policy.adapter or self.policy.dtype.itemsize > 2
        if is_float32 or self.config.optimizer_state != "32-bit":
            for param in self.params.values():
                param.register_post_accumulate_grad_hook(_let_signals_in)  # type: ignore[no-untyped-call]
            if not self.is_sharded:
                return self.params, self.params
            return self.params, {n: self._own(p.detach()) for n, p in self.params.items()}
        loaded: Mapping[str, Tensor] = self.policy.master_weights or self.params
        if self.is_sharded:
            masters = {n: self._own(w.detach()).to(torch.float32, copy=True) for n, w in loaded.items()}
            holders = {n: _float32_holder(p) for n, p in self.params.items()}
        else:
            masters = holders = {n: w.detach().float() for n, w in loaded.items()}
        for name, param in self.params.items():
            hook = partial(_move_gradient, holders[name])
            param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        return holders, masters

    def _own(self, tensor: Tensor) -> Tensor:
        """What of a tensor in the shape of a weight this process's optimizer works on."""
        if not self.is_sharded:
            return tensor
        return tensor.view(-1)[distributed.own_range(tensor.shape, self.by_rows)]

    @property
    def _has_copies(self) -> bool:
        """Whether the master weights are float32 copies of the policy's weights."""
        return self.gradient_holders is not self.params

    def compute_gradient(self, groups: Sequence[Group], loss_weights: Tensor) -> GradientStats:
        """Compute the loss for (Q, G) loss weights; its gradient stays in the `grad` of `gradient_holders`.

        Each of several processes computes the gradient of its share of the completions; all get the sum.
        When memory runs out, both are recomputed in micro-batches of half the size, which changes rounding
        alone; later steps keep that size. Raises DoesNotFitError when a single completion is too much.
        """
        trainable = own_share(trainable_groups(groups, loss_weights.tolist()))

        def compute() -> GradientStats:
            # Not watched without work: the watch would learn too short a limit from it.
            with distributed.watched("update") if trainable else nullcontext():
                return retry_on_oom(
                    lambda: self._scaled_gradient(trainable), lambda: self._halve_micro_batches(trainable)
                )

        return compute() if distributed.size() == 1 else self._sum_gradients(compute)

    def _sum_gradients(self, compute: Callable[[], GradientStats]) -> GradientStats:
        """Add up the gradients that the processes compute, each of its share."""

        def compute_and_fill() -> tuple[GradientStats, int, set[str]]:
            gradient = compute()
            moved = {name for name, weight in self.gradient_holders.items() if weight.grad is not None}
            for weight in self.gradient_holders.values():  # now: memory that runs out later ends the run
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            return gradient, self.micro_batch_tokens, moved

        shares = distributed.exchange(compute_and_fill)
        stats = [gradient for gradient, _, _ in shares]
        self.micro_batch_tokens = min(tokens for _, tokens, _ in shares)
        for name in set(self.gradient_holders).difference(*(moved for _, _, moved in shares)):
            self.gradient_holders[name].grad = None  # as in one process, no gradient is not a gradient of 0
        if not any(gradient.tokens for gradient in stats):
            return stats[0]
        distributed.sum_tensors(self._gradients())
        norm = self._gradient_norm()
        distributed.check_equal("gradients", norm.hex())
        return GradientStats.of_shares(stats, norm)

    def _halve_micro_batches(self, groups: Sequence[TrainableGroup]) -> None:
        self._drop_gradients()
        cost = self._branch_cost(self._shared_length(groups))
        costs = [cost(Branch(g.prompt, [c.token_ids])) for g in groups for c in g.completions]
        self.micro_batch_tokens = min(self.micro_batch_tokens, sum(costs))
        if self.micro_batch_tokens <= min(costs):
            raise DoesNotFitError(
                "the update of a single completion does not fit into memory",
                "lower rollout.max_new_tokens or prompt.max_tokens, or set --update.activation-checkpointing",
            )
        self.micro_batch_tokens //= 2
        logger.warning(
            "out of memory in the update: retrying with micro_batch_tokens %d", self.micro_batch_tokens
        )

    def _scaled_gradient(self, groups: Sequence[TrainableGroup]) -> GradientStats:
        """The gradient with the present loss scale, or the next lower one with which it does not overflow.

        A loss that is not finite is no overflow of the gradient: it is returned as it is.
        """
        scale = self.loss_scale
        gradient = self._gradient(groups, scale)
        while scale and math.isfinite(gradient.loss) and not gradient.is_finite:
            scale = scale.after_overflow()
            if scale:
                gradient = self._gradient(groups, scale)
        return gradient

    def _gradient(self, groups: Sequence[TrainableGroup], scale: LossScale | None) -> GradientStats:
        self._drop_gradients()
        if not groups:
            return GradientStats(0.0, 0.0, 0, loss_scale=scale)
        shared_length = self._shared_length(groups)
        prefix = self.forward_pass.prefix(groups[0].prompt[:shared_length]) if shared_length else None
        loss, tokens, factor = 0.0, shared_length, scale.factor if scale else 1.0
        gap = NO_GAP
        for batch in micro_batches(groups, self.micro_batch_tokens, self._branch_cost(shared_length)):
            batch_loss, batch_gap = self._backward(batch, prefix, factor)
            loss, gap = loss + batch_loss, gap + batch_gap
            for branch in batch.branches:
                tokens += len(branch.prompt) - shared_length + sum(map(len, branch.completions))
        if prefix:
            prefix.backward()
        if scale:
            torch._foreach_mul_(self._gradients(), 1 / factor)
        return GradientStats(loss / factor, self._gradient_norm(), tokens, gap, scale)

    def apply_gradient(self, gradient: GradientStats, step: int) -> bool:
        """Clip the gradient and update the weights; returns whether they were updated. `step` counts from 1.

        Nothing is updated when no completion has a nonzero loss weight (AdamW's momentum alone would move the
        weights) or when loss or gradient are not finite. See `weights_are_finite` for the result.
        """
        if gradient.tokens == 0 or not gradient.is_finite:
            return False
        # As torch.nn.utils.clip_grads_with_norm_, which would round this factor to the norm tensor's float32.
        clip = min(1.0, self.config.max_grad_norm / (gradient.norm + 1e-6))
        torch._foreach_mul_(self._gradients(), clip)
        seed = derive_seed(self.seed, "rounding", step)
        if self.is_sharded:  # where memory runs out, all must know before they share the weights
            distributed.exchange(lambda: self._step_optimizer(self.learning_rate(step), seed))
        else:
            self._step_optimizer(self.learning_rate(step), seed)
        if gradient.loss_scale:
            self.loss_scale = gradient.loss_scale.after_update()
        self._drop_gradients()
        self.sync_policy()
        return True

    def _step_optimizer(self, learning_rate: float, seed: int) -> None:
        with distributed.watched("optimizer step"):
            if self.gradient_holders is not self.master_weights:
                for name, part in self.master_weights.items():
                    gradient = self.gradient_holders[name].grad
                    part.grad = None if gradient is None else self._own(gradient)
            self.optimizer.step(learning_rate, seed)

    def weights_are_finite(self) -> bool:
        """Whether the policy's weights are, and so the master weights that are rounded to them."""
        return not not_finite(self.params)

    def allocate_optimizer_state(self) -> None:
        """Run one optimizer step with zero gradients and learning rate 0, so that its state is allocated.

        For use before the first step; call `reset_optimizer` afterwards.
        """
        for weight in self.gradient_holders.values():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.zero_()
        self._step_optimizer(0.0, 0)
        self._drop_gradients()

    def reset_optimizer(self) -> None:
        """Drop the optimizer's state, as before the first step."""
        self.optimizer = make_optimizer(self.config, self.master_weights)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up from learning_rate / warmup_steps at step 1, then constant.

        The schedule does not depend on train.steps, so a run of N steps extended by N equals a run of 2N.
        """
        return self.config.learning_rate * min(1.0, step / max(1, self.config.warmup_steps))

    def _shared_length(self, groups: Sequence[TrainableGroup]) -> int:
        return _shared_length(self.forward_pass, [g.prompt for g in groups])

    def _branch_cost(self, shared_length: int) -> Callable[[Branch], int]:
        """What a branch takes through the policy after the shared prefix: tokens, padding included."""
        return lambda branch: self.forward_pass.tokens(branch) - shared_length

    def _backward(
        self, batch: MicroBatch, prefix: SharedPrefix | None, factor: float
    ) -> tuple[float, SamplerGap]:
        """Add the gradient of a micro-batch's loss, multiplied by `factor`; returns that loss."""
        states = self.forward_pass.states(batch.branches, prefix)  # (L, H)
        completions = batch.completions
        tokens = torch.tensor([t for c in completions for t in c.token_ids], device=states.device)  # (L,)
        sizes = [len(c.token_ids) for c in completions]
        loss_weights = torch.tensor([c.loss_weight for c in completions], dtype=torch.float64).mul_(factor)
        token_weights = loss_weights.repeat_interleave(torch.tensor(sizes))  # (L,)
        recorded = torch.tensor([lp for c in completions for lp in c.logprobs], dtype=torch.float64)  # (L,)
        loss, logprobs = backward_in_chunks(
            self.model,
            states,
            tokens,
            token_weights,
            self.temperature,
            recorded=recorded if self.corrected_at else None,
            recorded_temperature=self.corrected_at or 1.0,
        )
        differences = logprobs.cpu().double() - recorded
        return loss, SamplerGap.measure([part.tolist() for part in torch.split(differences, sizes)])

    def _gradients(self) -> list[Tensor]:
        return [w.grad for w in self.gradient_holders.values() if w.grad is not None]

    def _gradient_norm(self) -> float:
        """As torch.nn.utils.get_total_norm, which would round the norm of bfloat16 gradients to 8 bits."""
        gradients = self._gradients()
        dtype = torch.promote_types(gradients[0].dtype, torch.float32)
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype))))

    def _drop_gradients(self) -> None:
        holders = (self.params, self.gradient_holders, self.master_weights)
        for weight in chain(*(weights.values() for weights in holders)):
            weight.grad = None

    @torch.no_grad()
    def sync_policy(self) -> None:
        """Round the master weights into the policy, unless they are its own parameters, and count the change.

        With sharded state all processes call it, since each gets the others' parts.
        """
        (self.policy.adapter or self.policy).version += 1
        if self._has_copies:
            own = [self._own(self.params[name].detach()) for name in self.master_weights]
            torch._foreach_copy_(own, list(self.master_weights.values()))
        if self.is_sharded:
            distributed.share_parts(self.params.values(), self.by_rows)

    @torch.no_grad()
    def restart_from(self, policy: Policy) -> None:
        """Take the weights of the same model, freshly loaded, and forget the optimizer's state."""
        loaded = policy.master_weights or policy.trained_parameters()
        for name, master in self.master_weights.items():
            master.copy_(self._own(loaded[name].detach()))
        self.sync_policy()
        self.reset_optimizer()
        self.loss_scale = self.loss_scale and LossScale()

    @property
    def state_bytes(self) -> int:
        """An upper bound of the size of `state_dict`: quantization tables are counted, but not saved."""
        sizes = [p.numel() for p in self.params.values()]
        itemsize = next(iter(self.params.values())).itemsize
        saved = saved_state_bytes(self.config.optimizer_state, sizes, itemsize)
        return saved + (16 if self.loss_scale else 0)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that a resumed run needs to continue bit for bit, by flat names.

        Where they are sharded, all processes call it; the main one gets the whole tensors, on the CPU.
        """
        state = {f"weight/{name}": master.detach() for name, master in self.master_weights.items()}
        if self.loss_scale:
            numbers = [self.loss_scale.factor, self.loss_scale.updates]
            state["loss_scale"] = torch.tensor(numbers, dtype=torch.float64)
        state |= self.optimizer.state_dict()
        if not self.is_sharded:
            return state
        whole = {
            name: distributed.collect_parts(t, self.params[weight].shape, self.by_rows)
            if (weight := _sharded(name))
            else t
            for name, t in state.items()
        }
        return {name: t for name, t in whole.items() if t is not None}

    def own_state(self, name: str, tensor: Tensor) -> Tensor:
        """What of a tensor of `state_dict` this process's `load_state_dict` takes."""
        return self._own(tensor).clone() if self.is_sharded and _sharded(name) else tensor

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`, from `own_state` of its tensors; also updates the policy."""
        for name, master in self.master_weights.items():
            master.copy_(state[f"weight/{name}"])
        if self.loss_scale and "loss_scale" in state:
            factor, updates = state["loss_scale"].tolist()
            self.loss_scale = LossScale(factor, int(updates))
        self.reset_optimizer()  # a state from before the first update has no moments
        self.optimizer.load_state_dict(state)
        self.sync_policy()


@torch.no_grad()
def load_trained_weights(policy: Policy, state: Mapping[str, Tensor]) -> None:
    """Give a policy that is not trained the weights of an updater's `state_dict`, in the policy's dtype."""
    for name, weight in policy.trained_parameters().items():
        weight.copy_(state[f"weight/{name}"])
    (policy.adapter or policy).version += 1


def token_logprobs_in_update(
    model: Any, forward_pass: ForwardPass, branches: Sequence[Branch], temperature: float = 1.0
) -> Tensor:
    """(L,) log-probabilities, in nats, of all completion tokens as an update sees them."""
    shared_length = _shared_length(forward_pass, [b.prompt for b in branches])
    prefix = forward_pass.prefix(branches[0].prompt[:shared_length]) if shared_length else None
    states = forward_pass.states(branches, prefix)
    tokens = torch.tensor([t for b in branches for ids in b.completions for t in ids], device=states.device)
    logprobs = token_logprobs(model, states, tokens, temperature).detach()
    forward_pass.release()
    return logprobs


def _shared_length(forward_pass: ForwardPass, prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts share; 0 for a single prompt, or if the model can't share a prefix."""
    shares = forward_pass.can_share_prefix and len(prompts) > 1
    return common_prefix_length([tuple(p) for p in prompts]) if shares else 0


def trainable_groups(groups: Sequence[Group], loss_weights: list[list[float]]) -> list[TrainableGroup]:
    """The completions whose loss weight is not 0, sorted by length in each group, which saves padding."""
    trainable = []
    for group, row in zip(groups, loss_weights, strict=True):
        weighted = [(r.completion, w) for r, w in zip(group.rollouts, row, strict=True) if w != 0]
        completions = [TrainableCompletion(c.token_ids, w, c.logprobs) for c, w in weighted]
        if completions:
            completions.sort(key=lambda completion: len(completion.token_ids))
            trainable.append(TrainableGroup(group.prompt.token_ids, completions))
    return trainable


def _sharded(name: str) -> str:
    """The weight of which a tensor in `state_dict` has parts; "" for a step count or the loss scale."""
    kind, _, weight = name.partition("/")
    return weight if kind in ("weight", "exp_avg", "exp_avg_sq") else ""


def _float32_holder(param: Tensor) -> Tensor:
    """A float32 tensor in a parameter's shape, without memory of its own, that can have a gradient."""
    return torch.empty((), device=param.device).expand(param.shape)


def own_share(groups: Sequence[TrainableGroup]) -> list[TrainableGroup]:
    """This process's part of the completions; few prompts pass through the policy in two processes."""
    part = distributed.own_part([len(c.token_ids) for group in groups for c in group.completions])
    share, start = [], 0
    for group in groups:
        completions = group.completions[max(0, part.start - start) : max(0, part.stop - start)]
        start += len(group.completions)
        if completions:
            share.append(TrainableGroup(group.prompt, completions))
    return share


def micro_batches(
    groups: Sequence[TrainableGroup], budget: int, cost: Callable[[Branch], int]
) -> Iterator[MicroBatch]:
    """Split completions into micro-batches that cost at most `budget` tokens or hold a single completion."""
    batch, closed_cost = MicroBatch(), 0  # of all branches but the newest, which still grows
    for group in groups:
        completions: list[Ids] = []
        branch_cost = 0
        for completion in group.completions:
            ids = completion.token_ids
            branch_cost = cost(Branch(group.prompt, [*completions, ids]))
            if batch.completions and closed_cost + branch_cost > budget:
                yield batch
                batch, closed_cost, completions = MicroBatch(), 0, []
                branch_cost = cost(Branch(group.prompt, [ids]))
            if not completions:
                batch.branches.append(Branch(group.prompt, completions))
            completions.append(ids)
            batch.completions.append(completion)
        closed_cost += branch_cost
    if batch.completions:
        yield batch


def _let_signals_in(param: Tensor) -> None:
    """Report that this process is alive. Python handles signals in this hook; inside a backward pass it
    can't.
    """
    distributed.report_alive()


def _move_gradient(master: Tensor, param: Tensor) -> None:
    """Add a parameter's 16-bit gradient to its master weight's float32 one, and free it."""
    assert param.grad is not None
    if master.grad is None:
        master.grad = param.grad.float().contiguous()
    elif param.grad.is_cuda:  # where the addition converts
        master.grad.add_(param.grad)
    else:
        pieces = (torch.split(grad.reshape(-1), CONVERTED_ELEMENTS) for grad in (master.grad, param.grad))
        for total, part in zip(*pieces, strict=True):
            total.add_(part)
    param.grad = None
    distributed.report_alive()
