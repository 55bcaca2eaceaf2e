"""One update of the policy from a step's groups: micro-batches, clipping, warm-up, AdamW.

A micro-batch is as many answers as its budget of tokens holds, of several groups where they fit;
what their prompts begin with and each prompt pass once (`passes.py`). Since the weights of the answers
are fixed beforehand, how a step is cut into micro-batches changes nothing. Answers of weight 0 are
left out, which changes nothing either, and is most of the time saved in a step.

Products may be in bfloat16; the weights that the optimizer moves are as a rule float32, because an update
of a thousandth of a weight would be lost in bfloat16's rounding (`optimizers.py` has other ways). Gradients
are added up in the dtype of these, and freed when the weights have moved.

Where memory runs out, the same answers pass once more in smaller micro-batches.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from reinforce_lite.config import UpdateConfig
from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.learner.loss import backward_in_chunks
from reinforce_lite.learner.optimizers import make_optimizer, optimizer_state_bytes
from reinforce_lite.models.forward import SharedPrefix, build_forward_pass, common_prefix_length
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_tree import Branch, Ids
from reinforce_lite.types import Group
from reinforce_lite.utils.memory import retry_on_oom
from reinforce_lite.utils.seeding import derive_seed

PIECE = 2**20
"""Numbers of a bfloat16 gradient that are made float32 at once: a temporary of the whole gradient's size
takes six times as long on a CPU."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GradientStats:
    """What a step's backward passes came to; the gradient itself stays with the weights."""

    loss: float
    norm: float
    """L2, before clipping; 0 when no group was live."""
    tokens: int
    """Tokens, prompts included, that passed through the policy with gradient; 0: nothing to learn."""


@dataclass(frozen=True, slots=True)
class TrainableGroup:
    """The answers to one prompt that are learned from."""

    prompt: tuple[int, ...]
    answers: list[tuple[tuple[int, ...], float]]
    """Token ids, and what their summed log-probability counts."""


@dataclass(slots=True)
class MicroBatch:
    """Answers that pass through the policy together, and what each one's log-probability counts."""

    branches: list[Branch]
    weights: list[float]
    """One an answer, in the order of the branches' completions."""

    @property
    def answers(self) -> list[Ids]:
        return [c for b in self.branches for c in b.completions]

    @property
    def tokens(self) -> int:
        """What passes through the policy, prompts once, without padding."""
        return sum(len(b.prompt) for b in self.branches) + sum(map(len, self.answers))


class Updater:
    """Owns the optimizer and the weights that it moves."""

    def __init__(self, policy: Policy, config: UpdateConfig, temperature: float, seed: int = 0) -> None:
        """`temperature` is the one at which log pi is differentiated; `seed` is that of random rounding."""
        self.policy = policy
        self.config = config
        self.temperature = temperature
        self.seed = seed
        self.micro_batch_tokens = config.micro_batch_tokens
        """Smaller from when memory ran out."""
        policy.check_fused()
        self.passes = build_forward_pass(policy.model, policy.llama, config.activation_checkpointing)
        self.params = dict(policy.model.named_parameters())
        self.master_weights = self._make_master_weights()
        policy.master_weights = None  # they are the masters now
        self.optimizer = make_optimizer(config, self.master_weights)

    def _make_master_weights(self) -> dict[str, Tensor]:
        """The weights that are moved: the policy's own, or finer ones behind bfloat16."""
        if self.policy.dtype != torch.bfloat16 or self.config.optimizer_state != "32-bit":
            return self.params
        fine = self.policy.master_weights or {}
        master_weights = {name: fine[name] if fine else p.detach().float() for name, p in self.params.items()}
        for name, param in self.params.items():
            param.register_post_accumulate_grad_hook(partial(_hand_over, master_weights[name]))
        return master_weights

    def compute_gradient(self, groups: Sequence[Group], weights: Tensor) -> GradientStats:
        """The loss and its gradient for (Q, G) weights, left with the optimizer's weights.

        Where memory runs out it is made again in micro-batches of half the size, which changes rounding
        alone, and they stay so. Raises WontFit when a single answer is too much.
        """
        answers = trainable_groups(groups, weights.tolist())
        return retry_on_oom(lambda: self._gradient(answers), lambda: self._halve(answers))

    def _halve(self, answers: Sequence[TrainableGroup]) -> None:
        self._drop_gradients()
        start = self._shared([g.prompt for g in answers])
        costs = [
            [self.passes.tokens(Branch(g.prompt, [ids])) - start for ids, _ in g.answers] for g in answers
        ]
        least, most = min(map(min, costs)), sum(map(sum, costs))
        self.micro_batch_tokens = min(self.micro_batch_tokens, most)
        if self.micro_batch_tokens <= least:
            raise DoesNotFitError(
                "the update of a single answer does not fit into memory", "see: reinforce-lite plan"
            )
        self.micro_batch_tokens //= 2
        logger.warning(
            "memory ran out in the update: the same answers again, %d tokens at once", self.micro_batch_tokens
        )

    def _gradient(self, answers: Sequence[TrainableGroup]) -> GradientStats:
        self._drop_gradients()
        if not answers:
            return GradientStats(0.0, 0.0, 0)
        prefix = self._prefix([group.prompt for group in answers])
        start = prefix.length if prefix else 0
        loss, tokens = 0.0, start
        for batch in micro_batches(answers, self.micro_batch_tokens, lambda b: self.passes.tokens(b) - start):
            loss += self._backward(batch, prefix)
            tokens += batch.tokens - start * len(batch.branches)
        if prefix:
            prefix.backward()
        return GradientStats(loss, self._norm(), tokens)

    def apply_gradient(self, gradient: GradientStats, step: int) -> bool:
        """Clip the gradient and move the weights; `step` counts from 1. False: nothing was moved.

        A step without a live group moves nothing (AdamW's momentum alone would), and neither does a
        gradient that is not finite.
        """
        if gradient.tokens == 0 or not math.isfinite(gradient.norm):
            return False
        clip = min(1.0, self.config.max_grad_norm / (gradient.norm + 1e-6))
        torch._foreach_mul_(self._gradients(), clip)
        self.optimizer.step(self.learning_rate(step), derive_seed(self.seed, "rounding", step))
        self._drop_gradients()
        self.sync_policy()
        return True

    def allocate_optimizer_state(self) -> None:
        """An optimizer's step that holds what every step does, and moves nothing. For before the first step:
        `forget` what it leaves."""
        for master in self.master_weights.values():
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad.zero_()
        self.optimizer.step(0.0, 0)
        self._drop_gradients()

    def reset_optimizer(self) -> None:
        """Back to how it was before the first step."""
        self.optimizer.reset()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up from rate / warmup_steps at step 1, then constant: N + N steps equal 2N."""
        return self.config.learning_rate * min(1.0, step / max(1, self.config.warmup_steps))

    def _prefix(self, prompts: Sequence[tuple[int, ...]]) -> SharedPrefix | None:
        """What several prompts begin with, if the model can share it."""
        length = self._shared(prompts)
        return self.passes.prefix(prompts[0][:length]) if length else None

    def _shared(self, prompts: Sequence[tuple[int, ...]]) -> int:
        return common_prefix_length(prompts) if len(prompts) > 1 else 0

    def _backward(self, batch: MicroBatch, prefix: SharedPrefix | None) -> float:
        states = self.passes.states(batch.branches, prefix)  # (K, H)
        device, answers = states.device, batch.answers
        tokens = torch.tensor([t for ids in answers for t in ids], device=device)
        lengths = torch.tensor([len(ids) for ids in answers])
        weights = torch.tensor(batch.weights, dtype=torch.float64).repeat_interleave(lengths)
        return backward_in_chunks(self.policy.model, states, tokens, weights, self.temperature)

    def _gradients(self) -> list[Tensor]:
        return [m.grad for m in self.master_weights.values() if m.grad is not None]

    def _norm(self) -> float:
        gradients = self._gradients()
        fine = torch.promote_types(gradients[0].dtype, torch.float32)
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, dtype=fine))))

    def _drop_gradients(self) -> None:
        for weights in (self.params, self.master_weights):
            for weight in weights.values():
                weight.grad = None

    @torch.no_grad()
    def sync_policy(self) -> None:
        """Round finer weights, where there are some, into the policy that samples."""
        if self.master_weights is not self.params:
            torch._foreach_copy_(list(self.params.values()), list(self.master_weights.values()))

    @property
    def state_bytes(self) -> int:
        """The size of `state` once the optimizer has taken a step."""
        sizes, item = [p.numel() for p in self.params.values()], self.policy.dtype.itemsize
        held = sum(optimizer_state_bytes(self.config.optimizer_state, sizes, item))
        own = self.master_weights is self.params  # else they are the finer copies
        return held + (sum(p.nbytes for p in self.params.values()) if own else 0)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs to go on bit for bit, as flat named tensors."""
        weights = {f"weight/{name}": master.detach() for name, master in self.master_weights.items()}
        return weights | self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            for name, master in self.master_weights.items():
                master.copy_(state[f"weight/{name}"])
            self.optimizer.load_state_dict(state)
        self.sync_policy()


def trainable_groups(groups: Sequence[Group], weights: Sequence[Sequence[float]]) -> list[TrainableGroup]:
    """The answers whose weight is not 0, each group's by length: those that attend together are alike."""
    found = []
    for group, row in zip(groups, weights, strict=True):
        answers = [(r.completion.token_ids, w) for r, w in zip(group.rollouts, row, strict=True) if w != 0]
        if answers:
            found.append(
                TrainableGroup(group.prompt.token_ids, sorted(answers, key=lambda answer: len(answer[0])))
            )
    return found


def micro_batches(
    groups: Sequence[TrainableGroup], budget: int, cost: Callable[[Branch], int]
) -> Iterator[MicroBatch]:
    """Cut answers into parts that cost at most `budget` tokens, or are a single answer."""
    batch, whole = MicroBatch([], []), 0  # its cost without the branch that is being filled
    for group in groups:
        completions: list[Ids] = []
        grown = 0
        for ids, weight in group.answers:
            grown = cost(Branch(group.prompt, [*completions, ids]))
            if batch.weights and whole + grown > budget:
                yield batch
                batch, whole, completions = MicroBatch([], []), 0, []
                grown = cost(Branch(group.prompt, [ids]))
            if not completions:
                batch.branches.append(Branch(group.prompt, completions))
            completions.append(ids)
            batch.weights.append(weight)
        whole += grown
    if batch.weights:
        yield batch


def _hand_over(master: Tensor, param: Tensor) -> None:
    """Add a bfloat16 gradient to the float32 one as soon as it is whole, and free it."""
    assert param.grad is not None
    if master.grad is None:
        master.grad = param.grad.float().contiguous()
    else:
        both = (torch.split(grad.reshape(-1), PIECE) for grad in (master.grad, param.grad))
        for whole, part in zip(*both, strict=True):
            whole.add_(part)
    param.grad = None
