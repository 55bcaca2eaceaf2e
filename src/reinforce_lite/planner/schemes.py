"""What the training state takes for each parameter, by the recipe and the hardware."""

from dataclasses import dataclass, replace

import torch

from reinforce_lite.config import Config
from reinforce_lite.errors import UsageError
from reinforce_lite.learner import optimizers


@dataclass(frozen=True, slots=True)
class ParameterScheme:
    """Bytes per parameter; all but the gradients are held through the whole run."""

    weights: float
    gradients: float
    optimizer_state: float
    master_weights: float
    """float32 copies of 16-bit weights, which the optimizer updates."""
    description: str

    @property
    def total(self) -> float:
        """Bytes per parameter in all."""
        return self.weights + self.gradients + self.optimizer_state + self.master_weights


ADAM_8BIT = 2 * (1 + 4 / optimizers.BLOCK)
"""Two moments of one byte, and a float32 scale for each block of them."""
SCHEMES = {
    ("float32", "32-bit"): ParameterScheme(4, 4, 8, 0, "float32 weights, gradients and Adam"),
    ("float32", "8-bit"): ParameterScheme(4, 4, ADAM_8BIT, 0, "float32 weights and gradients, 8-bit Adam"),
    ("bfloat16", "32-bit"): ParameterScheme(
        2, 4, 8, 4, "bfloat16 weights; float32 master weights, gradients and Adam"
    ),
    ("float16", "32-bit"): ParameterScheme(
        2, 4, 8, 4, "float16 weights; float32 master weights, gradients and Adam"
    ),
    ("bfloat16", "16-bit"): ParameterScheme(2, 2, 4, 0, "bfloat16 weights, gradients and Adam"),
    ("bfloat16", "8-bit"): ParameterScheme(
        2, 2, ADAM_8BIT, 0, "bfloat16 weights, stochastically rounded, and gradients; 8-bit Adam"
    ),
}
"""The schemes of this package, by model.dtype and update.optimizer_state."""
OTHER_METHODS = {
    "article": ParameterScheme(2, 2, 8, 0, "one network: bfloat16 weights and gradients, float32 Adam"),
    "GRPO": ParameterScheme(
        4, 2, 8, 0, "the article's network, and a frozen bfloat16 reference model for the KL term"
    ),
    "PPO": ParameterScheme(
        4, 4, 16, 0, "the article's network twice: a critic of the same size is trained too"
    ),
}
"""The same figures for other ways to train the model, without their activations and caches."""


@dataclass(frozen=True, slots=True)
class Target:
    """The hardware that a plan is for."""

    device_type: str
    """cuda, xpu, mps or cpu."""
    dtype: torch.dtype
    """The compute dtype."""
    memory: int | None
    """Bytes that a run can have; None where no limit is known."""
    installed: int | None = None
    """Bytes of the whole GPU if it is in this machine, where other programs may hold some of them."""
    host_memory: int | None = None
    """Bytes of the machine itself, if a GPU is in it."""
    processes: int = 1
    """How many train the run together, each on a target like this."""

    @property
    def size(self) -> int | None:
        """Bytes of the device, whoever holds them."""
        return self.installed or self.memory

    @property
    def dtype_name(self) -> str:
        """For example bfloat16."""
        return str(self.dtype).removeprefix("torch.")


def parameter_scheme(config: Config, target: Target) -> ParameterScheme:
    """The scheme of a recipe. Raises UsageError if its optimizer state needs another dtype."""
    state = config.update.optimizer_state
    if config.model.base_weights == "int8" and not config.adapter.rank:
        raise UsageError(
            "model.base_weights int8 freezes the weights, so there is nothing to train",
            "add --adapter.rank 16, or remove it",
        )
    if config.model.base_weights == "int8" and config.rollout.engine == "vllm":
        raise UsageError(
            "rollout.engine vllm does not support weights in 8 bits (model.base_weights int8)",
            "choose --rollout.engine native, or leave out --model.base-weights",
        )
    if config.update.offload_optimizer and (state != "8-bit" or target.device_type != "cuda"):
        raise UsageError(
            f"update.offload_optimizer moves 8-bit moments off a CUDA device, but this run has {state} state "
            f"on {target.device_type}",
            "leave it out, or train all weights on a GPU with --update.optimizer-state 8-bit",
        )
    _check_sharding(config, target)
    if config.adapter.rank:
        if state != "32-bit":
            raise UsageError(
                f"an adapter's optimizer state can only be 32-bit, not {state}",
                "add --update.optimizer-state 32-bit",
            )
        if config.model.base_weights == "int8":
            text = f"frozen weights in 8 bits, embedding and head in {target.dtype_name}; a float32 adapter"
            return ParameterScheme(1, 0, 0, 0, text)
        text = f"frozen {target.dtype_name} weights; a float32 adapter"
        return ParameterScheme(target.dtype.itemsize, 0, 0, 0, text)
    if target.dtype == torch.float16 and state != "32-bit":
        raise UsageError(
            f"update.optimizer_state {state} does not go with float16, which has no number small enough for "
            "small updates and squares of gradients",
            "choose --update.optimizer-state 32-bit, or --model.dtype "
            + ("float32" if state == "8-bit" else "bfloat16"),
        )
    scheme = SCHEMES.get((target.dtype_name, state))
    if scheme is None:
        raise UsageError(
            f"update.optimizer_state {state} needs bfloat16, but this run computes in {target.dtype_name}",
            "choose --update.optimizer-state 32-bit or 8-bit, or --model.dtype bfloat16",
        )
    if config.update.offload_optimizer:
        text = f"{scheme.description}, whose moments are not on the GPU"
        return replace(scheme, optimizer_state=0, description=text)
    if (n := shard_count(config, target)) > 1:
        what, masters, gradients = "state", scheme.master_weights, scheme.gradients
        if config.update.shard_weights:  # the copy that is trained is in float32 whatever the dtype
            what, masters, gradients = "master weights, gradients and state", 4, scheme.gradients / n
        return replace(
            scheme,
            gradients=gradients,
            optimizer_state=scheme.optimizer_state / n,
            master_weights=masters / n,
            description=f"{scheme.description}; {what} sharded over {n} processes",
        )
    return scheme


def _check_sharding(config: Config, target: Target) -> None:
    state = config.update.optimizer_state
    if config.update.shard_optimizer and state == "8-bit":
        raise UsageError(
            "update.shard_optimizer is for state of 32 or 16 bits: blocks of 8-bit state can't be cut",
            "leave it out, or add --update.optimizer-state 32-bit",
        )
    if config.update.shard_weights and (state != "32-bit" or target.dtype == torch.float16):
        raise UsageError(
            f"update.shard_weights needs 32-bit state in bfloat16 or float32, but this run has {state} state "
            f"in {target.dtype_name}",
            "leave it out, or add --update.optimizer-state 32-bit and --model.dtype bfloat16",
        )
    if config.update.shard_weights and config.adapter.rank:
        raise UsageError(
            "update.shard_weights is for training all weights: an adapter is small, and each process holds "
            "its whole base model anyway, to sample from",
            "leave it out, or train without adapter.rank",
        )


def shard_count(config: Config, target: Target) -> int:
    """Over how many processes the optimizer state is sharded."""
    update = config.update
    return target.processes if update.shard_optimizer or update.shard_weights else 1


def shards_weights(config: Config, target: Target) -> bool:
    """Whether the update's weights and gradients are sharded too."""
    return config.update.shard_weights and target.processes > 1
