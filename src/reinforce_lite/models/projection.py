"""Linear layers that have the same input, fused into one matrix product, with their adapters in a second one.

The layers' parameters become views of the fused weight, so an optimizer step changes both and a save needs no
copy. The gradients are explicit, for the functions of `llama.py`, which keep less than autograd would.

Shapes: N tokens, H width of the input.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reinforce_lite.models.adapter import Adapter, LowRank
from reinforce_lite.models.int8 import Int8Linear, dequantize

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`F.linear`, or a faster function with the same result."""


class Projection:
    """Several linear modules fused into one matrix product, and their adapters into a second one."""

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        self.modules = modules
        self.low_rank: list[tuple[slice, slice, LowRank]] = []
        """Of each adapted module: its columns of the output, its rows of `a`, and its matrices."""
        self.a: Tensor | None = None
        """(sum of ranks, H): the storage that the adapters' A are views of; None without an adapter."""
        self._stored = _fuse_parameters(self.weights)
        scales = [m.scale for m in modules if isinstance(m, Int8Linear)]
        self._scale = _fuse_parameters(scales) if scales else None
        self.bias = _fuse_parameters(self.biases) if self.biases else None

    @property
    def weight(self) -> Tensor:
        """(sum of the modules' output sizes, H): the storage that the modules' weights are views of.

        Of layers in 8 bits (`int8.py`) it is computed anew each time.
        """
        return self._stored if self._scale is None else dequantize(self._stored, self._scale)

    @property
    def is_int8(self) -> bool:
        """Whether the layers are held in 8 bits."""
        return self._scale is not None

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The modules' parameters, or q of layers in 8 bits."""
        return tuple(m.quantized if isinstance(m, Int8Linear) else m.weight for m in self.modules)

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """The modules' parameters; empty without biases."""
        return tuple(m.bias for m in self.modules if m.bias is not None)

    def adapt(self, adapter: Adapter) -> None:
        """Add the adapter's matrices of these modules, where it has any, in place of an earlier one's."""
        self.low_rank, self.a = [], None
        column, row = 0, 0
        for module in self.modules:
            layer, columns = adapter.by_module.get(module), slice(column, column + module.out_features)
            column = columns.stop
            if layer is not None:
                self.low_rank.append((columns, slice(row, row + len(layer.a)), layer))
                row += len(layer.a)
        if self.low_rank:
            self.a = _fuse_parameters([layer.a for *_, layer in self.low_rank])

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """The parameters that get a gradient, in the order of `parameter_gradients`."""
        layers = [layer for *_, layer in self.low_rank]
        if layers or not self.weights[0].requires_grad:
            return (*(layer.a for layer in layers), *(layer.b for layer in layers))
        return (*self.weights, *self.biases)

    def __call__(self, x: Tensor, linear: Linear, onto: Tensor | None = None) -> Tensor:
        """(N, H) to (N, sum of output sizes); for the forward pass alone.

        `onto`, of the result's shape, is overwritten with its sum with the result. `linear` is not used then.
        """
        if onto is None:
            out = linear(x, self.weight, self.bias)
        else:
            out = onto.addmm_(x, self.weight.t())
            if self.bias is not None:
                out.add_(self.bias)
        if self.a is not None:
            low = F.linear(x, self.a.to(x.dtype))  # (N, sum of ranks)
            for columns, ranks, layer in self.low_rank:
                out[:, columns].addmm_(low[:, ranks], layer.b.to(x.dtype).t(), alpha=layer.scale)
        return out

    def input_gradient(self, grad: Tensor) -> Tensor:
        """The gradient with respect to the (N, H) input, from that of the output."""
        d_x = grad @ self.weight
        if self.a is not None:
            d_x.addmm_(self._low_gradient(grad), self.a.to(grad.dtype))
        return d_x

    def parameter_gradients(self, grad: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """The gradients of `trained`, from that of the output and the (N, H) input."""
        if self.a is not None:
            low = F.linear(x, self.a.to(x.dtype))  # (N, sum of ranks)
            d_a = torch.split(
                (self._low_gradient(grad).t() @ x).float(), [len(layer.a) for *_, layer in self.low_rank]
            )
            d_b = [
                (grad[:, columns].t() @ low[:, ranks]).float().mul_(layer.scale)
                for columns, ranks, layer in self.low_rank
            ]
            return (*d_a, *d_b)
        if not self.trained:
            return ()
        sizes = [len(w) for w in self.weights]
        d_biases = torch.split(grad.sum(0), sizes) if self.biases else ()
        return (*torch.split(grad.t() @ x, sizes), *d_biases)

    def _low_gradient(self, grad: Tensor) -> Tensor:
        """(N, sum of ranks): the gradient with respect to A x."""
        parts = [
            (grad[:, columns] @ layer.b.to(grad.dtype)).mul_(layer.scale)
            for columns, _, layer in self.low_rank
        ]
        return torch.cat(parts, dim=1)

    def is_fused(self) -> bool:
        """Whether the modules' parameters still lie in the fused storage."""
        fused = {t.untyped_storage().data_ptr() for t in (self._stored, self.bias) if t is not None}
        return {p.untyped_storage().data_ptr() for p in (*self.weights, *self.biases)} == fused


@torch.no_grad()
def _fuse_parameters(params: Sequence[Tensor]) -> Tensor:
    """Concatenate the parameters along dim 0; each becomes a view of the result."""
    if len(params) == 1:
        return params[0].detach()
    fused = torch.cat([p.detach() for p in params])
    for param, view in zip(params, torch.split(fused, [len(p) for p in params]), strict=True):
        param.data = view
    return fused
