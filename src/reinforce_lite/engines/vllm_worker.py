"""What runs inside vLLM, which imports it by name: it takes the policy's weights for vLLM's own copy, and
starts vLLM as one of several processes.

The weights are loaded layer by layer into the memory that vLLM's kernels know ("layerwise reload"), as those
of a checkpoint are. What is special here:

- They arrive by reference, since the trainer runs in the same process.
- A head that is tied to the embedding gets no weights of its own. On a CPU vLLM holds a packed copy of them
  for its products, which must be packed again, or completions would still be sampled with the old head.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngine
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.executor.uniproc_executor import UniProcExecutor


@dataclass
class NoSettings:
    """There is nothing to agree on before the first transfer."""


@dataclass
class NamedWeights:
    """The weights of one update, by transformers' names."""

    weights: Iterable[tuple[str, Tensor]]


class ByReference(WeightTransferEngine):  # type: ignore[misc]
    """The worker's end of a transfer within one process."""

    init_info_cls = NoSettings
    update_info_cls = NamedWeights

    def init_transfer_engine(self, init_info: NoSettings) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Let the layers expect weights."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: NamedWeights) -> None:
        """Load all weights."""
        self.model.load_weights(update_info.weights)

    def finish_weight_update(self) -> None:
        """Give the layers their memory back, with the new values in it."""
        finalize_layerwise_reload(self.model, self.model_config)
        process_tied_layers(self.model)

    def shutdown(self) -> None:
        """Nothing to disconnect."""


class OneOfSeveral(UniProcExecutor):  # type: ignore[misc]
    """Runs vLLM in a process that torchrun has started, on that process's GPU.

    vLLM's own executor for torchrun would also wait for the other processes while it starts, to agree on the
    size of the KV cache, which is fixed here: a process that fails there would leave them waiting.
    """

    def _distributed_args(self) -> tuple[str, int, int]:
        return "env://", int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])


def process_tied_layers(model: Any) -> None:
    """Pack the weights again of layers that share them with another layer."""
    layers = [m for m in model.modules() if getattr(m, "quant_method", None) and hasattr(m, "weight")]
    owners = Counter(id(layer.weight) for layer in layers)
    for layer in layers:
        if owners[id(layer.weight)] > 1:
            layer.quant_method.process_weights_after_loading(layer)
