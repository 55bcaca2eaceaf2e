"""A copy of the model for updates, which torch's FSDP2 shards over the processes.

Each process holds some rows of every weight in float32, which the optimizer moves. Right before a layer
computes, FSDP2 (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) gathers its weights
in the compute dtype from all processes, and drops them afterwards; in the backward pass it gathers them again
and leaves each process with its rows of the summed gradient. The policy itself stays whole in each process,
to sample from.

Every pass therefore needs all processes: they call `states` and the backward pass equally often.
"""

import copy
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers.modeling_layers import GradientCheckpointingLayer

from reinforce_lite.errors import UsageError
from reinforce_lite.models import distributed
from reinforce_lite.models.forward import FullSequenceForward, SharedPrefix
from reinforce_lite.models.prefix_tree import Branch


class ShardedModel:
    """The sharded copy of a model, without values: `parts` are to be filled."""

    def __init__(self, model: Any, checkpointing: bool = False) -> None:
        """Raises UsageError for a model whose layers can't be told apart."""
        self.model = _without_weights(model)
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers:
            raise UsageError(
                f"update.shard_weights does not know the layers of {model.config.model_type} models",
                "leave it out",
            )
        self.forward_pass = ShardedForward(self.model, checkpointing)
        options: dict[str, Any] = {
            "mesh": DeviceMesh.from_group(distributed.group_for_passes(model.device), model.device.type),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=model.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            ),
        }
        for module in (*layers, self.model):  # the model's own group is what is outside of the layers
            fully_shard(module, **options)
            module.set_gradient_divide_factor(1.0)  # the sum, not the mean
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        _give_memory(self.model, model)
        self.forward_pass.body = _body_pass(self.model)
        self.parts = {name: _own_part(param) for name, param in self.model.named_parameters()}
        """By the weight's name, this process's rows of it, flat, in float32."""

    def gradients(self) -> dict[str, Tensor | None]:
        """This process's rows of the sum of all gradients, flat, in float32, by the weight's name."""
        params = self.model.named_parameters()
        return {name: None if p.grad is None else _own_part(p.grad) for name, p in params}

    def drop_gradients(self) -> None:
        """Free the gradients."""
        self.model.zero_grad(set_to_none=True)


class ShardedForward(FullSequenceForward):
    """One branch at a time, with all processes."""

    def states(self, branches: Sequence[Branch], prefix: SharedPrefix | None) -> Tensor:
        """See `ForwardPass`. Raises LostProcessError where another process is lost."""
        with distributed.transferring():
            return super().states(branches, prefix)

    def release(self) -> None:
        """Drop the weights that a forward pass without a backward pass has left gathered.

        They would be stale in the next pass, and take memory until then.
        """
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _without_weights(model: Any) -> Any:
    """A copy of a model in float32 whose parameters have no memory; tied ones are tied."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, dtype=torch.float32, device="meta"))
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def _give_memory(sharded: Any, model: Any) -> None:
    """Allocate this process's rows of the parameters; the buffers are the model's own."""
    sharded.to_empty(device=model.device)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        owner, _, key = name.rpartition(".")
        sharded.get_submodule(owner)._buffers[key] = buffer


def _body_pass(model: Any) -> Any:
    """The model without its head, called so that FSDP2 gathers the weights outside of the layers too.

    They stay gathered until the backward pass, so that the head can be used in between.
    """
    model.body_pass = MethodType(lambda self, *args, **kwargs: self.base_model(*args, **kwargs), model)
    register_fsdp_forward_method(model, "body_pass")
    return model.body_pass


def _own_part(tensor: Any) -> Tensor:
    part: Tensor = tensor.detach().to_local().view(-1)
    return part
