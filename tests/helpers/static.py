"""The static batch of a CUDA device on a CPU, and the batch of a CPU on a card."""

# mypy: allow-untyped-calls

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.engines.static_cache import BatchSize
from reinforce_lite.engines.static_decoder import StaticDecoder
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Sampling


class StaticEngine(NativeEngine):
    """The native engine as on a CUDA device."""

    def _is_static(self) -> bool:
        return True


class BatchEngine(NativeEngine):
    """The native engine as on a CPU, on a card too."""

    def _is_static(self) -> bool:
        return False


def make_decoder(policy: Policy, sampling: Sampling, rows: int = 3) -> StaticDecoder:
    """A decoder with rows 0 and 1 at their second and fourth token of one prompt; the others are idle."""
    decoder = StaticDecoder(policy, sampling, BatchSize(rows, sampling.max_new_tokens, 2, 8))
    decoder.set_prefix(())
    decoder.prefill([1], [(1, 40, 41, 42)])
    decoder.assign([0, 1], [1, 1], [4, 4])
    decoder.set_uniforms([0, 1], [[0.3] * sampling.max_new_tokens, [0.7] * sampling.max_new_tokens])
    decoder.set_tokens([0, 1], [50, 60], [1, 3], [False, False])
    return decoder


class Tape(TorchDispatchMode):
    """Records operations with their operands, as a CUDA graph does, and computes them again from these."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Write the results where they were written when this was recorded."""
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tensors(result), tensors(func(*args, **kwargs)), strict=True):
                if new.data_ptr() != old.data_ptr():  # neither a view nor in place
                    old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
