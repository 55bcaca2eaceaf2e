"""An update whose weights, gradient and optimizer state are sharded over several processes (FSDP2).

Each pass gathers the weights of one layer after the other from all processes (models/sharded.py), so all take
equally many passes: a process whose share of the completions is smaller adds passes that change nothing.
Memory that runs out in a pass ends the run, since the other processes wait within theirs.

The gradient is summed over passes in float32. Within a pass it has the compute dtype, so that in bfloat16 the
head's gradient is rounded after each chunk of tokens (`loss.py`).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reinforce_lite.config import UpdateConfig
from reinforce_lite.learner.sampler_gap import NO_GAP
from reinforce_lite.learner.updater import (
    GradientStats,
    MicroBatch,
    TrainableCompletion,
    TrainableGroup,
    Updater,
    micro_batches,
    own_share,
    trainable_groups,
)
from reinforce_lite.models import distributed
from reinforce_lite.models.forward import ForwardPass
from reinforce_lite.models.policy import Policy
from reinforce_lite.models.prefix_tree import Branch
from reinforce_lite.models.sharded import ShardedModel
from reinforce_lite.types import Group

IDLE = MicroBatch([Branch((0,), [(0,)])], [TrainableCompletion((0,), 0.0, (0.0,))])
"""A pass without effect on the gradient."""


def make_updater(
    policy: Policy, config: UpdateConfig, temperature: float, seed: int, corrected_at: float | None = None
) -> Updater:
    """The updater that `config` asks for; arguments as those of `Updater`."""
    is_sharded = config.shard_weights and distributed.size() > 1
    return (ShardedUpdater if is_sharded else Updater)(policy, config, temperature, seed, corrected_at)


class ShardedUpdater(Updater):
    """An updater with a sharded copy of the policy; its master weights are the copy's parts."""

    by_rows = True
    sharded: ShardedModel

    def _make_model(self) -> tuple[Any, ForwardPass]:
        self.sharded = ShardedModel(self.policy.model, self.config.activation_checkpointing)
        return self.sharded.model, self.sharded.forward_pass

    def _make_master_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        loaded = self.policy.master_weights or self.params
        for name, part in self.sharded.parts.items():
            part.copy_(self._own(loaded[name].detach()))
        return self.sharded.parts, self.sharded.parts

    def compute_gradient(self, groups: Sequence[Group], loss_weights: Tensor) -> GradientStats:
        """See `Updater.compute_gradient`. Memory that runs out is not tried again."""
        self._drop_gradients()
        passes = list(self._passes(own_share(trainable_groups(groups, loss_weights.tolist()))))
        most = max(distributed.exchange(lambda: len(passes)))
        if most == 0:
            return GradientStats(0.0, 0.0, 0)
        measured = []
        for batch in (*passes, *[IDLE] * (most - len(passes))):
            distributed.exchange(lambda: None)  # here signals are raised, and a lost process is noticed
            with distributed.transferring():
                measured.append(self._backward(batch, None, 1.0))
        del measured[len(passes) :]  # those of IDLE
        for name, gradient in self.sharded.gradients().items():
            self.master_weights[name].grad = gradient
        own = GradientStats(
            loss=sum(loss for loss, _ in measured),
            norm=self._gradient_norm(),
            tokens=sum(len(b.prompt) + len(c) for p in passes for b in p.branches for c in b.completions),
            sampler_gap=sum((gap for _, gap in measured), NO_GAP),
        )
        shares = distributed.exchange(lambda: own)
        return GradientStats.of_shares(shares, norm=math.hypot(*(share.norm for share in shares)))

    def apply_gradient(self, gradient: GradientStats, step: int) -> bool:
        """See `Updater.apply_gradient`. Raises LostProcessError where the processes then differ."""
        updated = super().apply_gradient(gradient, step)
        distributed.check_equal("weights", checksum(self.params.values()))
        return updated

    def _passes(self, groups: Sequence[TrainableGroup]) -> Iterator[MicroBatch]:
        """Micro-batches of one branch each: a single call of the model."""
        for group in groups:
            yield from micro_batches([group], self.micro_batch_tokens, self._branch_cost(0))

    def _drop_gradients(self) -> None:
        super()._drop_gradients()
        self.sharded.drop_gradients()


def checksum(weights: Iterable[Tensor]) -> int:
    """The sum of the bits of all weights, read as integers: another one wherever a single weight differs."""
    kinds = {2: torch.int16, 4: torch.int32}
    return int(
        torch.stack([w.detach().view(kinds[w.itemsize]).sum(dtype=torch.int64) for w in weights]).sum()
    )
