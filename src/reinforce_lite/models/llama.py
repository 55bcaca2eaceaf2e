"""The forward pass of Llama-like models, over the weights that transformers loaded.

Engine and updater use the same pass, so that they can't drift apart; they differ only in what a token attends
to, which they pass as `attend`. It is faster than transformers' modules for three reasons:

- the tokens of all sequences lie in one flat (N, H) tensor, without padding;
- q, k and v are one matrix product, and so are gate and up (`projection.py`);
- the backward pass keeps only what is expensive to recompute: norms and activations are recomputed from their
  inputs, which halves what autograd would keep.

It supports the families in FAMILIES; other models run through transformers' own modules.

Shapes: N tokens, H hidden size, Q query heads, K key-value heads, D head size, I inner size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from reinforce_lite.models.adapter import Adapter
from reinforce_lite.models.elementwise import (
    rms_norm,
    rms_norm_and_inverse,
    rms_norm_backward,
    rotate,
    swiglu,
    swiglu_backward,
)
from reinforce_lite.models.projection import Linear, Projection

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3"})

Attend = Callable[[int, Tensor], Tensor]
"""(layer, (N, (Q + 2K) x D) rotated queries, rotated keys, and values) to (N, Q x D)."""


def supports_model(model: nn.Module, max_length: int = 0) -> bool:
    """Whether `Llama` computes the same as the model's own code for sequences of up to `max_length` tokens.

    It does not for models that bring their own code, adapters, quantized weights or sliding windows, nor
    for LongRoPE (Phi-3) beyond the original context, where it depends on the batch's longest sequence.
    """
    if not type(model).__module__.startswith("transformers.models."):
        return False
    c: Any = model.config
    layer_types = set(getattr(c, "layer_types", None) or ["full_attention"])
    window = getattr(c, "sliding_window", None) if getattr(c, "use_sliding_window", True) else None
    windowed = layer_types != {"full_attention"} or (window and window < c.max_position_embeddings)
    if c.model_type not in FAMILIES or windowed or c.hidden_act != "silu" or getattr(c, "mlp_bias", False):
        return False
    rope = getattr(c, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type")
    too_long = rope_type == "longrope" and max_length > rope["original_max_position_embeddings"]
    if rope_type == "dynamic" or too_long:
        return False
    linears = [m for m in model.modules() if hasattr(m, "in_features") or type(m).__name__.endswith("Linear")]
    return all(type(m) is nn.Linear and type(m.weight) is nn.Parameter for m in linears)


class Layer:
    """The weights of one transformer layer, in the order of their use."""

    def __init__(self, layer: Any) -> None:
        attn, mlp = layer.self_attn, layer.mlp
        fused = hasattr(attn, "qkv_proj")  # Phi-3's projections are fused as loaded
        self.attention_norm = layer.input_layernorm
        self.qkv = Projection([attn.qkv_proj] if fused else [attn.q_proj, attn.k_proj, attn.v_proj])
        self.q_norm: Any = getattr(attn, "q_norm", None)
        """Qwen3 only, else None; likewise `k_norm`."""
        self.k_norm: Any = getattr(attn, "k_norm", None)
        self.out = Projection([attn.o_proj])
        self.mlp_norm = layer.post_attention_layernorm
        self.gate_up = Projection([mlp.gate_up_proj] if fused else [mlp.gate_proj, mlp.up_proj])
        self.down = Projection([mlp.down_proj])

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All four."""
        return self.qkv, self.out, self.gate_up, self.down


class Llama:
    """A causal language model without its head: token ids to final hidden states."""

    def __init__(self, model: Any) -> None:
        """Fuse the model's projections in place: their parameters move into new storage."""
        c = model.config
        self.model = model
        self.body = model.base_model
        self.query_heads: int = c.num_attention_heads
        self.kv_heads: int = c.num_key_value_heads
        self.head_size: int = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.key_start = self.query_heads * self.head_size
        """The column of a (N, (Q + 2K) x D) tensor at which keys and values start."""
        self.layers = [Layer(layer) for layer in self.body.layers]
        self.scale: float = self.body.layers[0].self_attn.scaling
        self.device = self.layers[0].qkv.weight.device

    def check_fused(self) -> None:
        """Raise RuntimeError if a parameter has left the fused storage (`model.to(...)`)."""
        if not all(p.is_fused() for layer in self.layers for p in layer.projections):
            raise RuntimeError("the model's weights were moved after they had been fused")

    def adapt(self, adapter: Adapter) -> None:
        """Compute the adapter's products too."""
        for layer in self.layers:
            for projection in layer.projections:
                projection.adapt(adapter)

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attend,
        linear: Linear = F.linear,
        checkpointing: bool = False,
    ) -> Tensor:
        """(N,) token ids at (N,) positions of their sequences to (N, H) final hidden states.

        With `checkpointing` only each layer's input is kept, and its activations are recomputed in the
        backward pass.
        """
        x = self.body.embed_tokens(ids)  # (N, H)
        # cos and sin, both (N, rotated part of D)
        rotary = tuple(t[0] for t in self.body.rotary_emb(x, positions[None]))
        run_layer: Callable[..., Tensor] = self._layer
        if checkpointing:
            run_layer = partial(checkpoint, self._layer, use_reentrant=False, preserve_rng_state=False)
        for i in range(len(self.layers)):
            x = run_layer(i, x, rotary, attend, linear)
        return _norm(x, self.body.norm)

    def _layer(self, i: int, x: Tensor, rotary: tuple[Tensor, ...], attend: Attend, linear: Linear) -> Tensor:
        layer = self.layers[i]
        qkv = _norm_linear(x, layer.attention_norm, layer.qkv, linear)
        if layer.q_norm is not None:
            qkv = self._norm_heads(qkv, layer)
        heads = self.query_heads + self.kv_heads
        qkv = _Rotate.apply(qkv, *rotary, heads, self.head_size)  # type: ignore[no-untyped-call]
        x = x + _project(attend(i, qkv), layer.out, linear)
        gate_up = _norm_linear(x, layer.mlp_norm, layer.gate_up, linear)
        return x + _swiglu_down(gate_up, layer.down, linear)

    def _norm_heads(self, qkv: Tensor, layer: Layer) -> Tensor:
        heads = qkv.view(len(qkv), -1, self.head_size)
        q, k, v = torch.split(heads, [self.query_heads, self.kv_heads, self.kv_heads], dim=1)
        return torch.cat([_norm(q, layer.q_norm), _norm(k, layer.k_norm), v], dim=1).flatten(1)


def _norm(x: Tensor, norm: Any) -> Tensor:
    """RMSNorm of the last dimension."""
    normed: Tensor = rms_norm(x, norm.weight, norm.variance_epsilon) if x.is_cuda else norm(x)
    return normed


def _norm_linear(x: Tensor, norm: Any, projection: Projection, linear: Linear) -> Tensor:
    """RMSNorm of (N, H), then a fused projection."""
    if not torch.is_grad_enabled():  # `apply` would take a tenth of the time of a decoding step
        return projection(rms_norm(x, norm.weight, norm.variance_epsilon), linear)
    projected: Tensor = _NormLinear.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.variance_epsilon, projection, linear, *projection.trained
    )
    return projected


def _project(x: Tensor, projection: Projection, linear: Linear) -> Tensor:
    """(N, inputs) to (N, outputs)."""
    if not torch.is_grad_enabled():
        return projection(x, linear)
    projected: Tensor = _Project.apply(x, projection, linear, *projection.trained)  # type: ignore[no-untyped-call]
    return projected


def _swiglu_down(gate_up: Tensor, projection: Projection, linear: Linear) -> Tensor:
    """(N, 2I) gate and up to (N, H)."""
    if not torch.is_grad_enabled():
        return projection(swiglu(gate_up), linear)
    projected: Tensor = _SwigluDown.apply(  # type: ignore[no-untyped-call]
        gate_up, projection, linear, *projection.trained
    )
    return projected


class _NormLinear(Function):
    """y W^T + b with y = RMSNorm(x) (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467).

    With r = 1 / sqrt(mean(x^2) + eps), u = r x, gain g and d the gradient with respect to y:

        y = g u        d_g = sum over tokens of d u        d_x = r (g d - u mean(g d u))

    Keeps x and r, one number per token. The parameters of the projection are arguments only so that
    autograd gives them their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, eps: float, projection: Projection, linear: Linear, *params: Tensor
    ) -> Tensor:
        normed, inverse = rms_norm_and_inverse(x, gain, eps)
        ctx.save_for_backward(x, gain, inverse)
        ctx.projection, ctx.eps = projection, eps
        return projection(normed, linear)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gain, inverse = ctx.saved_tensors
        projection = ctx.projection
        if x.is_cuda:
            d_params = projection.parameter_gradients(grad, rms_norm(x, gain, ctx.eps))
            if not ctx.needs_input_grad[0]:
                return None, None, None, None, None, *d_params
            d = projection.input_gradient(grad)
            d_x, d_gain = rms_norm_backward(d, x, inverse, gain, ctx.needs_input_grad[1])
            return d_x, d_gain, None, None, None, *d_params
        unit = x * inverse  # (N, H), in at least float32
        d_params = projection.parameter_gradients(grad, unit.to(x.dtype) * gain)
        if not ctx.needs_input_grad[0]:  # the first layer over a frozen embedding
            return None, None, None, None, None, *d_params
        d = projection.input_gradient(grad).to(unit.dtype)  # (N, H)
        d_unit = d * unit
        d_gain = d_unit.sum(0).to(gain.dtype) if ctx.needs_input_grad[1] else None
        negative_mean = (d_unit @ gain.to(unit.dtype)).div_(-x.shape[1])[:, None]  # (N, 1)
        d_x = d.mul_(gain).addcmul_(unit, negative_mean).mul_(inverse).to(x.dtype)
        return d_x, d_gain, None, None, None, *d_params


class _Project(Function):
    """x W^T + b, and the adapter's product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: Projection, linear: Linear, *params: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.projection = projection
        return projection(x, linear)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        d_params = ctx.projection.parameter_gradients(grad, x)
        d_x = ctx.projection.input_gradient(grad) if ctx.needs_input_grad[0] else None
        return d_x, None, None, *d_params


class _SwigluDown(Function):
    """(silu(gate) * up) W^T, SwiGLU and the down projection (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Keeps only the (N, 2I) gate and up, and recomputes their product in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, projection: Projection, linear: Linear, *params: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.projection = projection
        return projection(swiglu(gate_up), linear)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        d_gate_up, inner = swiglu_backward(ctx.projection.input_gradient(grad), gate_up)
        return d_gate_up, None, None, *ctx.projection.parameter_gradients(grad, inner)


class _Rotate(Function):
    """Rotary position embedding of queries and keys (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    In place on a CPU, and nothing but cos and sin is kept: the gradient is rotated by the opposite angle.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, head_size: int) -> Tensor:
        ctx.rotary, ctx.heads, ctx.head_size = (cos, sin), heads, head_size
        rotated = rotate(qkv, cos, sin, heads, head_size)
        if rotated is qkv:
            ctx.mark_dirty(qkv)
        return rotated

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos, sin = ctx.rotary
        grad = grad if grad.is_cuda else grad.clone()
        return rotate(grad, cos, -sin, ctx.heads, ctx.head_size), None, None, None, None
