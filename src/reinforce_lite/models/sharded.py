"""A copy of the model for updates, which torch's FSDP2 shards over the processes.

Each process holds a part of every weight in float32, which the optimizer moves. Right before a layer
computes, FSDP2 (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) gathers its weights
in the compute dtype from all processes, and drops them afterwards; in the backward pass it gathers them again
and leaves each process with its part of the summed gradient. The policy itself stays whole in each process,
to sample from.

Every pass therefore needs all processes: they call `states` and the backward pass equally often.
"""

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers.modeling_layers import GradientCheckpointingLayer

from reinforce_lite.models.distributed import advance_with
from reinforce_lite.models.forward import FullSequenceForward


class ShardedModel:
    """The sharded copy of a model, without values: `parts` are to be filled."""

    def __init__(self, model: Any, checkpointing: bool = False) -> None:
        """Raises UsageError if transformers does not support checkpointing for the model."""
        self.model = _without_weights(model)
        self.forward_pass = FullSequenceForward(self.model, checkpointing)
        precision = MixedPrecisionPolicy(param_dtype=model.dtype, reduce_dtype=torch.float32)
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                advance_with(layer)
                fully_shard(layer, mp_policy=precision)
        fully_shard(self.model, mp_policy=precision)
        for module in self._groups():
            module.set_gradient_divide_factor(1.0)  # the sum, not the mean
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        _give_memory(self.model, model)
        self.forward_pass.body = _body_pass(self.model)
        self.parts = {name: _own_part(param) for name, param in self.model.named_parameters()}
        """By the weight's name, this process's part: some of its rows, flat, in float32."""

    def _groups(self) -> list[FSDPModule]:
        """The modules whose weights are gathered together: each layer, and all that is outside of them."""
        return [module for module in self.model.modules() if isinstance(module, FSDPModule)]

    def forget_gathered(self) -> None:
        """Drop weights that a forward pass without a backward pass has left gathered."""
        for module in self._groups():
            module.reshard()

    def gradients(self) -> dict[str, Tensor | None]:
        """This process's part of the sum of all gradients, flat, in float32, by the weight's name."""
        params = self.model.named_parameters()
        return {name: None if p.grad is None else _own_part(p.grad) for name, p in params}

    def drop_gradients(self) -> None:
        """Free the gradients."""
        self.model.zero_grad(set_to_none=True)


def _without_weights(model: Any) -> Any:
    """A copy of a model in float32 whose parameters have no memory; tied ones are tied."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, dtype=torch.float32, device="meta"))
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def _give_memory(sharded: Any, model: Any) -> None:
    """Allocate this process's parts of the parameters; the buffers are the model's own."""
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
